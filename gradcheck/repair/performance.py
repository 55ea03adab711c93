"""The result of a short training of a treated copy, and the comparison of two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradcheck.remedies.definition import changes_loss
from gradcheck.training.intervals import CONFIDENCE
from gradcheck.training.paired import effect, paired_effect
from gradcheck.training.result import Result
from gradcheck.training.skill import skill
from gradcheck.training.trainer import Trainer
from gradcheck.types.fix import Effect, Fix

WELL = 0.5  # loss in units of chance: the model trains, and no more is looked for (as in benchmarks/predictions.py)


def result_of(training: Trainer, applied: Sequence[Fix]) -> Result:
    workload = training.treated.workload
    score = skill(training.copy.model, workload.batches, workload.training_step)
    return Result(training.record(), not changes_loss(applied), score)


def compare(base: Sequence[Result], treated: Sequence[Result], confidence: float = CONFIDENCE) -> Effect:
    """The paired effect on the training loss, or, if that measures something else, on accuracy or explained variance."""
    if all(r.comparable for r in (*base, *treated)):
        return effect([r.run for r in base], [r.run for r in treated], confidence=confidence)
    pairs = list(zip(base, treated, strict=True))
    known = [s.metric for pair in pairs for r in pair if (s := r.skill) is not None]
    if known:
        values = [[-math.inf if r.failed or r.skill is None else r.skill.value for r in pair] for pair in pairs]
        return paired_effect([a for a, _ in values], [b for _, b in values], metric=known[0], lower_is_better=False, confidence=confidence)
    falls = [[r.relative(r.run.losses[0]) if r.run.losses else math.inf for r in pair] for pair in pairs]
    return paired_effect([a for a, _ in falls], [b for _, b in falls], metric="loss relative to its start", confidence=confidence)
