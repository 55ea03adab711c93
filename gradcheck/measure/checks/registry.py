"""All checks beside the probe, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable, Collection

from gradcheck.measure.checks import (
    adapters,
    attention,
    balance,
    baseline,
    critical,
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
    terms,
    validation,
)
from gradcheck.measure.checks.context import Check, CheckContext, CheckResults, run
from gradcheck.types.measurement import NotMeasured

CHECKS: tuple[Check, ...] = (
    Check("dependence", "dependence", dependence.dependence, quick=True),
    Check("sequence", "sequence", sequence.sequence, quick=True),
    Check("padding", "padding", padding.padding, quick=True),
    Check("routing", "routers", routing.routers, quick=True),
    Check("adapters", "adaptation", adapters.adaptation, quick=True),
    Check("derivatives", "derivatives", derivatives.derivatives),
    Check("normalization", "normalization", normalization.statistics, quick=True),
    Check("functional_step", "functional_step", settings.functional_step),
    Check("epsilon", "small_epsilon", settings.small_epsilon, quick=True),
    Check("clipping", "clip", settings.clipping, quick=True),
    Check("critical", "critical", critical.critical_rate),
    Check("regularization", "regularization", regularization.regularization),
    Check("validation", "validation", validation.validation),
    Check("recurrence", "recurrences", recurrence.recurrences),
    Check("samples", "samples", sample_gradients.sample_gradients),
    Check("attention", "attentions", attention.measure),
    Check("precision", "half", float16.measure),
    Check("baseline", "baseline", baseline.baseline, quick=True),
    Check("embeddings", "embeddings", embeddings.embeddings),
    Check("terms", "idle_terms", terms.idle_terms),
    Check("balance", "imbalance", balance.imbalance),
    Check("sharpness", "sharpness", sharpness.sharpness),
)
PROBE_IN_WORDS = "the short training and its experiments"


def check(context: CheckContext, needs: Collection[str] | None, fast: bool, tick: Callable[[str, float], None]) -> CheckResults:
    """Makes the checks that are needed (None: all); with `fast` the quick ones only, and says what was left out."""
    asked = [c for c in CHECKS if needs is None or c.need in needs]
    if not fast:
        return run(context, asked, tick)
    done = run(context, [c for c in asked if c.quick], tick)
    left_out = dict.fromkeys((PROBE_IN_WORDS, *(c.need for c in asked if not c.quick)))
    done.not_measured += [NotMeasured(what, "left out by --fast", "left-out") for what in left_out]
    return done
