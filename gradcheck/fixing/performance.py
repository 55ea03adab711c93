"""What a short training of a patient comes to, and how that of two patients compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from gradcheck.nouns.measurement import Run
from gradcheck.nouns.treatment import Effect, Prescription
from gradcheck.target.outputs import first_tensor
from gradcheck.target.step import run as forward
from gradcheck.target.workload import Batch
from gradcheck.trial.paired import Course, effect, paired_effect, training_loss

# Treatments after which the loss measures something else: it cannot be compared with the untreated one's.
OTHER_LOSS = ("standardize-target", "label-smoothing", "l1", "elastic-net", "mixup")
MOST_BATCHES = 8  # that accuracy and explained variance are taken over
WELL = 0.5  # loss in units of chance: the model trains, and no more is looked for (as in benchmarks/predictions.py)


@dataclass(frozen=True)
class Skill:
    """Accuracy, or explained variance, of a trained patient on its training batches; `chance` is what a constant prediction has."""

    metric: str
    value: float
    chance: float

    @property
    def relative(self) -> float:
        """1: no better than a constant prediction; 0: perfect."""
        return (1 - self.value) / (1 - self.chance)


@dataclass(frozen=True)
class Result:
    """One training of one patient with one seed."""

    run: Run
    comparable: bool  # its loss measures the same as the untreated one's
    skill: Skill | None = None

    @property
    def loss(self) -> float:
        """Mean over the last steps; infinite when it diverged."""
        return training_loss(self.run)

    @property
    def failed(self) -> bool:
        return self.run.ended in ("non-finite", "raised")

    def relative(self, reference: float) -> float:
        """The loss in units of `reference`, what the best constant prediction costs; where the loss is another one, the skill's."""
        if self.failed or math.isnan(self.loss):
            return math.inf
        if self.comparable:
            return self.loss / reference if reference > 0 else math.inf
        if self.skill is not None:
            return self.skill.relative if math.isfinite(self.skill.relative) else math.inf
        return self.loss / self.run.losses[0] if self.run.losses[0] > 0 else math.inf


def result_of(course: Course, applied: Sequence[Prescription]) -> Result:
    comparable = not changes_loss(applied)
    return Result(course.run(), comparable, skill(course.trainee.model, course.patient.workload.batches))


def changes_loss(applied: Sequence[Prescription]) -> bool:
    return any(p.stage == "loss" or p.treatment in OTHER_LOSS for p in applied)


def compare(base: Sequence[Result], treated: Sequence[Result]) -> Effect:
    """The paired effect: of the training loss, or where that changed of accuracy or explained variance."""
    if all(r.comparable for r in (*base, *treated)):
        return effect([r.run for r in base], [r.run for r in treated])
    pairs = list(zip(base, treated, strict=True))
    known = [s.metric for pair in pairs for r in pair if (s := r.skill) is not None]
    if known:
        values = [[-math.inf if r.failed or r.skill is None else r.skill.value for r in pair] for pair in pairs]
        return paired_effect([a for a, _ in values], [b for _, b in values], metric=known[0], lower_is_better=False)
    falls = [[r.relative(r.run.losses[0]) if r.run.losses else math.inf for r in pair] for pair in pairs]
    return paired_effect([a for a, _ in falls], [b for _, b in falls], metric="loss relative to its start")


@torch.no_grad()
def skill(model: torch.nn.Module, batches: Sequence[Batch]) -> Skill | None:
    """None where the targets are neither classes nor values of the prediction's size, or the model does not take the batch this way."""
    scores = []
    try:
        for batch in batches[:MOST_BATCHES]:
            output, target = forward(model, batch)
            scores.append(_score(first_tensor(output), target))
    except Exception:  # the user's own code runs here; without a skill the loss tells
        return None
    known = [s for s in scores if s is not None]
    if not known or len(known) < len(scores):
        return None
    metric, values, chances = known[0][0], [s[1] for s in known], [s[2] for s in known]
    chance = fmean(chances)
    return Skill(metric, fmean(values), chance) if chance < 1 else None


def _score(output: torch.Tensor, target: object) -> tuple[str, float, float] | None:
    """(metric, value, value of the best constant prediction) on one batch."""
    if not isinstance(target, torch.Tensor) or target.numel() == 0:
        return None
    output, target = output.detach().double(), target.detach()
    if not bool(torch.isfinite(output).all()):
        return None
    binary = output.numel() == target.numel() and bool(((target == 0) | (target == 1)).all())
    if binary:
        limit = 0.5 if float(output.min()) >= 0 and float(output.max()) <= 1 else 0.0
        return _accuracy(output.reshape(-1) > limit, target.reshape(-1).bool())
    if not target.is_floating_point() and output.ndim == target.ndim + 1:
        axis = 1 if target.shape == (output.shape[0], *output.shape[2:]) else -1
        return _accuracy(output.argmax(axis).reshape(-1), target.reshape(-1))
    if output.shape == target.shape and output.ndim > 1 and _are_distributions(target):
        return _accuracy(output.argmax(1), target.argmax(1))
    if output.numel() == target.numel():
        wanted = target.double().reshape(output.shape)
        variance = float(((wanted - wanted.mean(0)) ** 2).mean())
        return ("explained variance", 1 - float(((output - wanted) ** 2).mean()) / variance, 0.0) if variance > 0 else None
    return None


def _accuracy(predicted: torch.Tensor, target: torch.Tensor) -> tuple[str, float, float]:
    most = float(torch.unique(target, return_counts=True)[1].max()) / target.numel()
    return "accuracy", float((predicted == target).double().mean()), most


def _are_distributions(target: torch.Tensor) -> bool:
    rows = target.sum(1)
    return bool((target >= 0).all()) and bool(torch.allclose(rows, torch.ones_like(rows), atol=1e-4))
