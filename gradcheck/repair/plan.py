"""Which treatments the findings ask for, in the order of the stages, and the rate that they are trained with."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from gradcheck.analysis.wording import reason
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.repair.lab import Plan
from gradcheck.repair.rescan import TREATED
from gradcheck.types.finding import Finding
from gradcheck.types.fix import STAGES, Fix, Outcome
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import OptimizerFacts

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
                    said = Fix(remedy.name, remedy.text, "wiring", "advice", findings=(finding.code,), location=finding.location)
                    shown.setdefault(remedy.text, Outcome(said, "advice"))
    return list(shown.values())


LOWER, RAISE, ADAPTIVE = "lower-learning-rate", "raise-learning-rate", "adaptive-optimizer"

# Rates with which most trainings begin: the defaults of torch and Keras, and Karpathy's recipe for Adam.
ADAPTIVE_RATE, ADAGRAD_RATE, SGD_RATE, MOMENTUM_RATE = 1e-3, 1e-2, 0.1, 0.01
AROUND = (1.0, 0.3, 3.0, 0.1)  # factors on it
SAME = 0.05  # relative: a rate this close to the user's counts as the user's


def usual_rates(optimizer: OptimizerFacts, plan: Plan = ()) -> tuple[float, ...]:
    """Rates around the usual one of this kind of optimizer; none for an unknown kind."""
    if adapts(plan):
        centre = ADAPTIVE_RATE
    elif optimizer.adaptive:
        centre = ADAGRAD_RATE if optimizer.name == "Adagrad" else ADAPTIVE_RATE
    elif optimizer.name == "SGD":
        centre = MOMENTUM_RATE if optimizer.momentum else SGD_RATE
    else:
        return ()
    return tuple(factor * centre for factor in AROUND)


def rate_of(plan: Plan, optimizer: OptimizerFacts) -> float:
    chosen = [float(p.settings["lr"]) for p in plan if p.treatment in (LOWER, RAISE, ADAPTIVE)]
    return chosen[-1] if chosen else optimizer.lr


def with_rate(plan: Plan, rate: float, optimizer: OptimizerFacts, catalogue: Catalogue) -> Plan:
    """The plan with this rate, for the optimizer that it puts in, or else for the user's."""
    now, wanted = optimizer.lr, float(f"{rate:.2g}")
    plan = without_rate(plan)
    if adapts(plan):
        return tuple(catalogue[ADAPTIVE].at(p, lr=wanted) if p.treatment == ADAPTIVE else p for p in plan)
    if math.isclose(wanted, now, rel_tol=SAME):
        return plan
    text = f"set the learning rate to {wanted:g} (now {now:g}): the best of those tried"
    return (*plan, catalogue[rate_treatment(now, wanted)].fix(text, settings={"lr": wanted}))


def rate_treatment(now: float, wanted: float) -> str:
    return LOWER if wanted < now else RAISE


def adapts(plan: Iterable[Fix]) -> bool:
    """Whether the user's optimizer is replaced by an adaptive one."""
    return any(p.treatment == ADAPTIVE for p in plan)


def without_rate(plan: Iterable[Fix]) -> Plan:
    return tuple(p for p in plan if p.treatment not in (LOWER, RAISE))
