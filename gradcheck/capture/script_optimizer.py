"""The script's optimizer, for the copies of its parameters: as it was before its first step, with the rates that the script sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.capture.bounds import Bounds, Projections
from gradcheck.capture.events import OptimizerTrace
from gradcheck.capture.together import as_one
from gradcheck.capture.twins import Twins
from gradcheck.loading.optimizers import assumed_optimizer, rate_of
from gradcheck.measure.experiments import Forgetting
from gradcheck.types.measurement import Assumption
from gradcheck.workload.training_copy import copy_optimizer

LEAST = 0.1  # of the highest rate: after the recorded steps the rate does not fall below this share of it


@dataclass
class Schedule:
    """Hooks around an optimizer's step. They scale whatever rates the groups have at the time, and put them back."""

    peaks: tuple[float, ...]  # highest rate of each group
    factors: tuple[tuple[float, ...], ...]  # by step, by group: the rate over the peak
    step: int = 0
    _kept: tuple[Any, ...] = ()

    @classmethod
    def of(cls, rates: Sequence[tuple[float, ...]]) -> Schedule | None:
        """`rates` by step and group; None when they stay as they are."""
        usable = [r for r in rates if len(r) == len(rates[0])]
        if len(set(usable)) < 2:
            return None
        peaks = tuple(max(column) for column in zip(*usable, strict=True))
        factors = [tuple(r / p if p else 1.0 for r, p in zip(row, peaks, strict=True)) for row in usable]
        return cls(peaks, tuple(factors))

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        over = self.step >= len(self.factors)
        row = self.factors[-1 if over else self.step]
        self._kept = tuple(group["lr"] for group in optimizer.param_groups)
        for group, factor in zip(optimizer.param_groups, row, strict=True):
            group["lr"] = group["lr"] * (max(factor, LEAST) if over else factor)
        self.step += 1

    def after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._kept, strict=True):
            group["lr"] = rate


@dataclass
class StepOptions:
    """A hook before an optimizer's step: `step(burn_in=True)`."""

    options: Sequence[Mapping[str, Any]]  # by step; those of the last one hold on
    step: int = 0

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        given = self.options[min(self.step, len(self.options) - 1)]
        self.step += 1
        return args, {**given, **kwargs}


def optimizer_of(
    watched: OptimizerTrace | None, model: nn.Module, twins: Twins, bounds: Bounds
) -> tuple[torch.optim.Optimizer, bool, Assumption]:
    """The optimizer, whether the script made it, and what is said of it."""
    if watched is None:
        assumed, said = assumed_optimizer(None)(model)
        return assumed, False, said
    made = [_as_the_script_uses_it(w, twins, bounds) for w in watched.members]
    text = ", and ".join(words for _, words in made)
    return as_one([optimizer for optimizer, _ in made]), True, Assumption("optimizer", f"optimizer: {text}", given=True)


def _as_the_script_uses_it(watched: OptimizerTrace, twins: Twins, bounds: Bounds) -> tuple[torch.optim.Optimizer, str]:
    """A copy that has the rates and the state it has in the script, and a description of it."""
    optimizer = _copied_optimizer(watched, twins)
    text = f"{type(optimizer).__name__} {_origin(watched)}"
    life = watched.life
    if life is not None and watched.forgets:
        Forgetting.attach(optimizer, life)
    ids = watched.ids
    kept = [(w, p) for key, w in twins.tensors.items() if key in ids for p in bounds.of(key, len(watched.steps))]
    if kept:
        optimizer.register_step_post_hook(Projections(kept).after)
        text += f", {len({id(w) for w, _ in kept})} weights put back within bounds after each step"
    if any(watched.options):
        optimizer.register_step_pre_hook(StepOptions(watched.options).before)
    rates = [s.rates for s in watched.steps]
    schedule = Schedule.of(rates)
    if schedule is None:
        return optimizer, f"{text}, lr {rate_of(optimizer):g}"
    for group, rate in zip(optimizer.param_groups, schedule.peaks, strict=True):
        group["lr"] = rate
    optimizer.register_step_pre_hook(schedule.before)
    optimizer.register_step_post_hook(schedule.after)
    return optimizer, f"{text}, its rate as the script sets it over {len(rates)} steps, {rate_of(optimizer):g} at most"


def _origin(watched: OptimizerTrace) -> str:
    if watched.changes is None:
        return f"`{watched.label or 'optimizer'}` of the script"
    place = f" in line {watched.step_site.line}" if watched.step_site is not None else ""
    return f"(the rule that the script's update{place} follows)"


def _copied_optimizer(watched: OptimizerTrace, twins: Twins) -> torch.optim.Optimizer:
    """The optimizer as it was before its first step, with the parameters that are trained here. One that took no step is as it was."""
    if watched.copy is None:
        return copy_optimizer(watched.optimizer, {**twins.memo, **twins.tensors})
    held = [p for group in watched.copy.param_groups for p in group["params"]]
    own = {id(p): twins.tensors[key] for p, key in zip(held, watched.keys, strict=True) if key in twins.tensors}
    return copy_optimizer(watched.copy, {**twins.memo, **own})
