"""Nets side by side, such as actor and critic: each has a depth of its own, and is judged by itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from gradcheck.types.finding import SEVERITIES, Finding
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import NoVerdict, Verdict


def nets(m: Measurement) -> list[Measurement]:
    """A measurement for each net, with its own layers and normalizations only; the measurement itself where there is one net."""
    numbers = sorted({i for x in m.layers for i in x.nets})
    if len(numbers) < 2:
        return [m]
    return [_net(m, i) for i in numbers]


def _net(m: Measurement, number: int) -> Measurement:
    others = {x.name for x in m.layers if x.nets and number not in x.nets}
    return replace(
        m,
        layers=tuple(x for x in m.layers if x.name not in others),
        norms=tuple(n for n in m.norms if n.layer not in others),
        streams=tuple(s for s in m.streams if not others.issuperset(s.layers)),
    )


def over_nets(m: Measurement, check: Callable[[Measurement], Verdict]) -> Verdict:
    """The findings of all nets, those at one place as one; without findings, passed if one net did."""
    verdicts = [check(net) for net in nets(m)]
    findings = [f for v in verdicts if not isinstance(v, NoVerdict) for f in v]
    if findings or len(verdicts) == 1:
        return _merged(findings) if findings else verdicts[0]
    return next((v for v in verdicts if not isinstance(v, NoVerdict)), verdicts[0])


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """One finding where one line makes several nets: the worst, with the layers of all."""
    groups: dict[Location | None, list[Finding]] = {}
    for f in findings:
        groups.setdefault(f.location, []).append(f)
    merged = []
    for group in groups.values():
        worst = min(group, key=lambda f: SEVERITIES.index(f.severity))
        more = f"; likewise in {len(group) - 1} more net{'s' if len(group) > 2 else ''} beside it" if len(group) > 1 else ""
        layers = dict.fromkeys(name for f in group for name in f.layers)
        merged.append(replace(worst, message=worst.message + more, layers=tuple(layers)))
    return merged
