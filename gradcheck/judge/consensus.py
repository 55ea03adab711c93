"""Findings of one rule: one per creation site, and over several seeds only those that most of them show.

And their keys from run to run, without line numbers: edits elsewhere in a file do not change them.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from gradcheck.types.finding import SEVERITIES, Evidence, Finding, Severity


def merge_sites(findings: Sequence[Finding]) -> list[Finding]:
    """One finding per location: layers joined, the rest from the worst. Findings without a location stay as they are."""
    groups: dict[object, list[Finding]] = {}
    for i, finding in enumerate(findings):
        groups.setdefault(finding.location or i, []).append(finding)
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[Finding]) -> Finding:
    if len(group) == 1:
        return group[0]
    worst = min(group, key=worst_first)
    return replace(worst, layers=tuple(dict.fromkeys(layer for f in group for layer in f.layers)))


def worst_first(finding: Finding) -> tuple[int, float]:
    """Sorts findings by severity, and by how far beyond the limit they are."""
    return SEVERITIES.index(finding.severity), -excess(finding)


def excess(finding: Finding) -> float:
    """How far the first number with a limit lies on the faulty side, as a ratio; 0 where there is none, inf for NaN."""
    evidence = telling(finding)
    if evidence is None or evidence.limit is None:
        return 0.0
    if evidence.value != evidence.value:
        return float("inf")
    high, low = (evidence.limit, evidence.value) if "<" in evidence.comparison else (evidence.value, evidence.limit)
    if low == 0:
        return float("inf") if high > 0 else 0.0
    return high / low if low > 0 else high - low


def agree(verdicts: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Findings that more than half of the seeds show; `verdicts` has the findings of each seed that came to a verdict."""
    if len(verdicts) == 1:
        return list(verdicts[0])
    groups: list[dict[int, Finding]] = []  # seed -> finding, for each distinct finding
    for seed, findings in enumerate(verdicts):
        for finding in findings:
            group = next((g for g in groups if seed not in g and _same(finding, next(iter(g.values())))), None)
            if group is None:
                groups.append({seed: finding})
            else:
                group[seed] = finding
    return [_agreed(list(g.values()), len(verdicts)) for g in groups if 2 * len(g) > len(verdicts)]


def _same(a: Finding, b: Finding) -> bool:
    """The same place; without places, layers in common."""
    if a.location or b.location:
        return a.location == b.location
    return bool(set(a.layers) & set(b.layers)) or not (a.layers or b.layers)


def _agreed(group: Sequence[Finding], seeds: int) -> Finding:
    """The finding with the severity that most seeds reach, and the medians of its numbers over the seeds."""
    severity = _common_severity(group, seeds)
    candidates = sorted((f for f in group if f.severity == severity), key=excess)
    chosen = candidates[(len(candidates) - 1) // 2]
    return replace(chosen, evidence=tuple(_median(chosen, i, group) for i in range(len(chosen.evidence))))


def _common_severity(group: Sequence[Finding], seeds: int) -> Severity:
    """The highest severity that some seed gave and that more than half of the seeds reach."""
    for severity in sorted({f.severity for f in group}, key=SEVERITIES.index):
        if 2 * sum(SEVERITIES.index(f.severity) <= SEVERITIES.index(severity) for f in group) > seeds:
            return severity
    raise AssertionError("a finding of most seeds has a severity that most of them reach")


def _median(finding: Finding, index: int, group: Sequence[Finding]) -> Evidence:
    """One number of the finding, as the median of that number over the group, with its spread."""
    evidence = finding.evidence[index]
    nth = sum(_quantity(e) == _quantity(evidence) for e in finding.evidence[:index])
    alike = [[e.value for e in f.evidence if _quantity(e) == _quantity(evidence)] for f in group]
    values = [found[nth] for found in alike if len(found) > nth]
    if len(values) < 2 or any(v != v for v in values):
        return evidence
    return replace(evidence, value=median(values), spread=(min(values), max(values)))


def _quantity(evidence: Evidence) -> tuple[str, str]:
    return evidence.quantity, evidence.unit


def key(finding: Finding, target: str, root: Path) -> str:
    """`name:path:scope:layer-pattern`; the path is seen from the folder `root`. Without a place, the target stands for it."""
    place = finding.location
    path = seen_from(place.path, root) if place else target_name(target, root)
    # Comprehensions have a scope of their own up to Python 3.11 only.
    scope = re.sub(r"(\.<locals>)?\.?<\w+comp>", "", place.scope) if place else ""
    return f"{finding.name}:{path}:{scope}:{layer_pattern(finding.layers)}"


def layer_pattern(layers: Iterable[str]) -> str:
    """Layer names with their numbers as stars, each once, sorted: `layers.*.linear1,stem`. One layer more changes nothing."""
    return ",".join(sorted({re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in layers}))


def fingerprint(key: str, nth: int = 0) -> str:
    """32 hexadecimal digits of a key; `nth` tells findings with the same key apart."""
    return hashlib.sha256(f"{key}#{nth}".encode("utf-8", "backslashreplace")).hexdigest()[:32]


def seen_from(path: str, root: Path) -> str:
    """A path relative to a folder that holds it, with slashes; other paths are unchanged."""
    full = Path(os.path.abspath(path))
    folder = Path(os.path.abspath(root))
    return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else Path(path).as_posix()


def target_name(target: str, root: Path) -> str:
    """A target, its file seen from the folder `root`."""
    path, colon, name = target.partition(":") if ".py:" in target else (target, "", "")
    return f"{seen_from(path, root)}{colon}{name}" if path.endswith(".py") else target


def telling(finding: Finding) -> Evidence | None:
    """The number that decides the finding: the first one that has a limit."""
    return next((e for e in finding.evidence if e.limit is not None), None)
