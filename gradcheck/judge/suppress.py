"""`# gradcheck: ignore[...]` comments and per-layer ignores."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from gradcheck.types.finding import Finding, RuleState
from gradcheck.types.location import Ignore, Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule

RAN = ("finding", "passed", "not-applicable", "suppressed")


@rule("META001", up_to="info")
def unused_ignore(m: Measurement, limits: Limits) -> Verdict:
    """A `# gradcheck: ignore[...]` comment that suppresses nothing.

    ## What it finds
    Names in ignore comments whose rules ran and found nothing at the line of the comment.

    ## Why it matters
    A comment that outlived its finding hides the next one at the same line.

    ## How it is measured
    The findings are compared with the comments after all other rules have run. A name is judged only when every rule
    that it stands for was selected and came to a verdict.

    ## Limits and their sources
    None.

    ## When to ignore it
    When the finding comes and goes with the data or the seed: leave `unused-ignore` out with `--ignore unused-ignore`.

    ## Example
    ```python
    self.act = nn.GELU()  # gradcheck: ignore[dead-units]
    ```

    ## Use instead
    ```python
    self.act = nn.GELU()
    ```

    ## References
    Ruff's `unused-noqa` does the same for lint rules.
    """
    return [] if m.ignores else not_applicable("no ignore comments")


def names_rule(word: str, code: str, name: str) -> bool:
    """Whether a selector (name, code, family or ALL) stands for the rule."""
    return word.lower() in (name, code.lower(), code.rstrip("0123456789").lower(), "all")


Hits = set[tuple[str, int, str]]  # path, line of the comment, name in it


def split_by_comments(findings: Iterable[Finding], ignores: Sequence[Ignore]) -> tuple[list[Finding], list[Finding], Hits]:
    """Findings to keep, suppressed findings, and the names in comments that suppressed one."""
    by_path: dict[str, list[Ignore]] = defaultdict(list)
    for ignore in ignores:
        by_path[ignore.path].append(ignore)
    kept: list[Finding] = []
    suppressed: list[Finding] = []
    used: Hits = set()
    for finding in findings:
        hits = {
            (i.path, i.comment_line, word)
            for i in (by_path.get(finding.location.file, ()) if finding.location else ())
            for word in i.names
            if _covers(i, finding.location) and names_rule(word, finding.code, finding.name)
        }
        (suppressed if hits else kept).append(finding)
        used |= hits
    return kept, suppressed, used


def _covers(ignore: Ignore, location: Location | None) -> bool:
    return location is not None and location.line <= ignore.line <= max(location.line, location.end_line)


def without_effect(ignores: Iterable[Ignore], used: Hits, states: Sequence[RuleState]) -> list[Finding]:
    """An unused-ignore finding for each comment with a name that suppressed nothing although its rules ran."""
    unused: dict[tuple[str, int], list[str]] = {}
    for ignore in ignores:
        words = [w for w in ignore.names if (ignore.path, ignore.comment_line, w) not in used and _ran(w, states)]
        if words:
            unused.setdefault((ignore.path, ignore.comment_line), words)
    return [
        replace(
            found(
                "info",
                f"nothing to ignore here for {', '.join(words)}: the comment can go, or it would hide the next finding at this line",
                location=Location.at(path, line),
            ),
            code=unused_ignore.code,
            name=unused_ignore.name,
        )
        for (path, line), words in unused.items()
    ]


def _ran(word: str, states: Sequence[RuleState]) -> bool:
    meant = [s for s in states if names_rule(word, s.code, s.name)]
    return bool(meant) and all(s.status in RAN for s in meant)


def split_by_layers(findings: Iterable[Finding], per_layer: Mapping[str, Sequence[str]]) -> tuple[list[Finding], list[Finding]]:
    """Findings without their ignored layers, and those of which no layer is left."""
    kept: list[Finding] = []
    dropped: list[Finding] = []
    for finding in findings:
        globs = [glob for glob, words in per_layer.items() if any(names_rule(w, finding.code, finding.name) for w in words)]
        layers = tuple(x for x in finding.layers if not any(fnmatchcase(x, glob) for glob in globs))
        if finding.layers and not layers:
            dropped.append(finding)
        else:
            kept.append(replace(finding, layers=layers))
    return kept, dropped
