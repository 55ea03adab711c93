"""Root causes: a finding that another one explains is shown under it."""

from collections.abc import Sequence
from dataclasses import replace

from gradcheck.types.finding import SEVERITIES, Finding
from gradcheck.types.location import Location
from gradcheck.types.rule import Rule


def fold(findings: Sequence[Finding], rules: Sequence[Rule]) -> list[Finding]:
    """The findings, with `cause` the code of the root cause where there is one.

    A rule's finding explains those of the rules that it names in `explains`, and of those in `explains_here` when they point at the
    same expression, where it is at least as severe. Chains lead to their top; of rules that explain each other, the one that is
    registered first is the cause.
    """
    explains = {r.code: frozenset(r.explains) for r in rules}
    here = {r.code: frozenset(r.explains_here) for r in rules}
    places: dict[str, set[tuple[str, int, int]]] = {}
    for finding in findings:
        if finding.location is not None:
            places.setdefault(finding.code, set()).add(_place(finding.location))
    order = {r.code: i for i, r in enumerate(rules)}
    worst: dict[str, Finding] = {}
    for finding in findings:
        if finding.code not in worst or _rank(finding) < _rank(worst[finding.code]):
            worst[finding.code] = finding
    ranked = sorted(worst, key=lambda code: (_rank(worst[code]), order.get(code, len(order))))

    def explained(finding: Finding, code: str) -> bool:
        if finding.code in here.get(code, ()) and finding.location is not None:
            return _place(finding.location) in places.get(code, ())
        return finding.code in explains.get(code, ())

    def direct(finding: Finding) -> str | None:
        causes = (c for c in ranked if c != finding.code and explained(finding, c) and _rank(worst[c]) <= _rank(finding))
        return next(causes, None)

    def top(code: str) -> str:
        path = [code]
        while (cause := direct(worst[path[-1]])) is not None:
            if cause in path:
                return min(path[path.index(cause) :], key=lambda c: order[c])
            path.append(cause)
        return path[-1]

    def root(finding: Finding) -> str | None:
        cause = direct(finding)
        return None if cause is None or top(cause) == finding.code else top(cause)

    return [replace(f, cause=root(f)) for f in findings]


def _place(location: Location) -> tuple[str, int, int]:
    return location.path, location.line, location.column


def _rank(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)
