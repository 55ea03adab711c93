"""Which treatments the findings ask for, in the order of the stages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from gradcheck.analysis.unsafe import reason
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.repair.rescan import TREATED
from gradcheck.types.finding import Finding, Remedy
from gradcheck.types.fix import STAGES, Fix, Outcome
from gradcheck.types.measurement import Measurement

Catalogue = Mapping[str, RemedyDefinition]

NEEDS_UNSAFE = "it {reason}: only with --unsafe-fixes"


def fixes_for(findings: Iterable[Finding], m: Measurement, catalogue: Catalogue) -> list[Fix]:
    """The fixes for these findings of this model, wiring first, regularisation last.

    A fix that several findings ask for appears once.
    """
    found: dict[tuple[object, ...], Fix] = {}
    for finding in findings:
        for remedy in finding.remedies:
            treatment = catalogue.get(remedy.name)
            if treatment is None or treatment.apply is None:
                continue
            for p in treatment.propose(finding, m):
                key = p.treatment, tuple(sorted(p.settings.items())), p.layers
                known = found.get(key)
                codes = dict.fromkeys((*(known.findings if known else ()), *p.findings, finding.code))
                found[key] = replace(known or p, findings=tuple(codes))
    return sorted(found.values(), key=lambda p: STAGES.index(p.stage))


def allowed(fixes: Sequence[Fix], unsafe: bool) -> list[Fix]:
    return [p for p in fixes if p.applicability == "safe" or (unsafe and p.applicability == "unsafe")]


def refused(fixes: Sequence[Fix], unsafe: bool) -> list[Outcome]:
    """What was not tried because it is not safe."""
    refused = [p for p in fixes if p.applicability == "unsafe" and not unsafe]
    return [Outcome(p, "untried", NEEDS_UNSAFE.format(reason=reason(p.treatment))) for p in refused]


def advice(findings: Iterable[Finding], m: Measurement, catalogue: Catalogue, left: Collection[str]) -> list[Outcome]:
    """What is left for the user to do: remedies that cannot be applied, either at all or to this model."""
    shown: dict[str, Outcome] = {}
    for finding in findings:
        if finding.code in left and finding.severity in TREATED:
            for remedy in finding.remedies:
                treatment = catalogue.get(remedy.name)
                if treatment is None or treatment.apply is None or not treatment.propose(finding, m):
                    shown.setdefault(remedy.text, Outcome(_advised(remedy, finding), "advice"))
    return list(shown.values())


def _advised(remedy: Remedy, finding: Finding) -> Fix:
    return Fix(remedy.name, remedy.text, "wiring", "advice", findings=(finding.code,), location=finding.location)
