"""All checks besides the probe, in the order in which they are made."""

from collections.abc import Callable, Collection
from dataclasses import replace

from gradcheck.measure.checks import (
    adapters,
    attention,
    balance,
    dependence,
    derivatives,
    embeddings,
    float16,
    normalization,
    padding,
    recurrence,
    regularization,
    routing,
    sample_gradients,
    sequence,
    settings,
    sharpness,
    validation,
)
from gradcheck.measure.checks.context import Check, CheckContext, CheckResults, run
from gradcheck.types.measurement import NotMeasured

# Forecasts were measured on GPTs that learn, with batches of 8 and of 1 sample, except where they follow from a count.
CHECKS: tuple[Check, ...] = (
    Check("dependence", "dependence", dependence.dependence, quick=True, steps=lambda c: c.more),
    Check("sequence", "sequence", sequence.sequence, quick=True, steps=lambda c: 2.0),
    Check("padding", "padding", padding.padding, quick=True, steps=lambda c: 0.4),
    Check("routing", "routers", routing.routers, quick=True, steps=lambda c: 0.4),
    Check("adapters", "adaptation", adapters.adaptation, quick=True),
    Check("derivatives", "derivatives", derivatives.derivatives, whole=True),
    Check("normalization", "normalization", normalization.statistics, quick=True),
    Check("functional_step", "functional_step", settings.functional_step, steps=lambda c: 1.5),
    Check("epsilon", "small_epsilon", settings.small_epsilon, quick=True),
    Check("clipping", "clip", settings.clipping, quick=True),
    Check("critical", "critical", sharpness.critical_rate, steps=lambda c: 3.0),
    Check("regularization", "regularization", regularization.regularization, steps=lambda c: 1.0),
    Check("validation", "validation", validation.validation, steps=lambda c: len(c.workload.val_batches[: validation.MOST_BATCHES])),
    Check("recurrence", "recurrences", recurrence.recurrences, steps=lambda c: 0.3),
    Check("samples", "samples", sample_gradients.sample_gradients, steps=lambda c: 1.5 * c.more if c.compared is not None else 3.2),
    Check("attention", "attentions", attention.measure, steps=lambda c: 0.3),
    Check("precision", "half", float16.measure, steps=lambda c: 2.0 if c.half else 0.0),
    Check("baseline", "baseline", validation.baseline, quick=True),
    Check("embeddings", "embeddings", embeddings.embeddings, steps=lambda c: 0.3),
    Check("terms", "idle_terms", balance.idle_terms, steps=lambda c: 0.5),
    Check("balance", "imbalance", balance.imbalance, steps=lambda c: 0.5),
    Check("sharpness", "sharpness", sharpness.sharpness, steps=lambda c: 0.0 if c.learned else sharpness.ITERATIONS),
)
PROBE_IN_WORDS = "the short training and its experiments"


def forecast(context: CheckContext, needs: Collection[str] | None) -> float:
    """How many training steps the checks take as long as, if the training learns."""
    learns = replace(context, chance=None, probe=replace(context.probe, ended="learned"))
    return sum(c.steps(learns) for c in CHECKS if needs is None or c.need in needs)


def check(context: CheckContext, needs: Collection[str] | None, fast: bool, tick: Callable[[str, float], None]) -> CheckResults:
    """Makes the checks that are needed (None: all); with `fast` the quick ones only, and says what was left out."""
    asked = [c for c in CHECKS if needs is None or c.need in needs]
    if not fast:
        return run(context, asked, tick)
    done = run(context, [c for c in asked if c.quick], tick)
    left_out = dict.fromkeys((PROBE_IN_WORDS, *(c.need for c in asked if not c.quick)))
    done.not_measured += [NotMeasured(what, "left out by --fast", "left-out") for what in left_out]
    return done
