"""The rate that a plan trains with, on the user's optimizer or on the one that takes its place."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradcheck.repair.lab import Plan
from gradcheck.repair.plan import Catalogue
from gradcheck.types.fix import Fix
from gradcheck.types.training import OptimizerFacts

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
