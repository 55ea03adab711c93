"""What is tried when the probe did not learn: keeping the optimizer's state, another order, other rates, one small batch with Adam. This
separates bad luck from a wrong learning rate, and that from a model that cannot learn. Nothing here runs on a workload that learns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradcheck.analysis.convergence import (
    CLEAR_FALL,
    FEWEST_COMPARED,
    faster,
    held_up,
    on_its_way,
    outcome,
    relative_decrease,
    steps_to_learn,
)
from gradcheck.measure.parameters import Watched
from gradcheck.training.trainer import Trainer
from gradcheck.types.training import ONE_OPTIMIZER, SAME_RATE_LONGER, Run
from gradcheck.workload.lockstep import now
from gradcheck.workload.training_copy import TrainingCopy, fork, some_samples
from gradcheck.workload.workload import Workload


@dataclass
class Forgetting:
    """A hook after an optimizer's step."""

    steps: int  # that are remembered; 0: all
    fresh: dict[torch.Tensor, dict[str, Any]]  # the state before the first step
    count: int = 0

    @classmethod
    def attach(cls, optimizer: torch.optim.Optimizer, steps: int) -> None:
        optimizer.register_step_post_hook(cls(steps, {p: dict(state) for p, state in optimizer.state.items()}).after)

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.count += 1
        if self.steps and self.count % self.steps == 0:
            optimizer.state.clear()
            optimizer.state.update({p: {name: _again(value) for name, value in state.items()} for p, state in self.fresh.items()})


def forgettings(optimizer: torch.optim.Optimizer) -> list[Forgetting]:
    """The hooks of this kind that it has."""
    hooks = (getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_post_hooks.values())
    return [hook for hook in hooks if isinstance(hook, Forgetting)]


def _again(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


BEST_UPDATE = 0.01  # update ratio that suits most nets, whatever the optimizer (calibration E3: 1.5e-2, sd 0.4 decades)
ONE_BATCH = 16  # samples
ONE_BATCH_STEPS = 200  # a healthy net needs 9 to 155 (calibration E16)
ONE_BATCH_MOST = 1000  # while the loss still falls: targets far from zero take long to reach
ONE_BATCH_RATES = (3e-3, 1e-3)
LONGEST_COMPARISON = 6.0  # seconds beyond the deadline, for the first other rate after a probe that was cut off
TIMES_LONGER = 10  # what learns within so many times the steps is slow, not hopeless (as benchmarks/predictions.py tells them apart)
LONGER_SECONDS = 8.0
WINDOW = 5  # last losses that must all have fallen before a run is stopped as learned


Levels = Callable[[Any], tuple[float | None, float]]  # of the best constant prediction on a batch, and of the best there is


def rate_factors(probe: Run, chance: float | None, watched: Sequence[Watched]) -> tuple[float, ...]:
    """Factors on the user's rate that are worth a try, the most promising first.

    For a probe that the budget cut off, the first must show within a few steps that the rate is what holds it up.
    """
    if held_up(probe, chance):
        return (0.01, 0.1)
    ratios = sorted(s.update_ratio for w in watched if w.tensor.dim() >= 2 for s in w.steps[:3] if s.update_ratio)
    typical = ratios[len(ratios) * 3 // 4] if ratios else None  # upper quartile: layers that hardly move say nothing about the rate
    if outcome(probe, chance) == "diverges" or typical is None or not math.isfinite(typical):
        return (0.1, 0.01, 0.001, 1e-4)
    best, middle = BEST_UPDATE / typical, BEST_UPDATE / max(ratios[len(ratios) // 2], 1e-12)
    if best > 3:
        candidates = [best, best / 10, 0.1, 10.0]
    elif best < 0.3:
        candidates = [0.1, best, 0.01]
    else:
        candidates = [0.1, 10.0, 0.01]
    if middle > 30 and middle > 3 * best:  # most layers hardly move, few move much
        candidates.insert(1, middle)
    return tuple(dict.fromkeys(float(f"{c:.2g}") for c in candidates))


@dataclass
class Failure:
    """A probe that failed, and what it takes to try again."""

    workload: Workload
    probe: Run
    steps: int  # that a run may take
    seed: int
    chance: float | None  # loss of the best constant prediction over the batches
    deadline: float  # for all runs together
    tick: Callable[[str], None]
    step_seconds: float = 0.0  # that one step took in the probe

    def repeat(self, name: str, copy: TrainingCopy, deadline: float, batches: Sequence[Any] = (), *, steps: int = 0, **said: Any) -> Run:
        """The probe again, on these batches and for so many steps if given, until the loss has clearly fallen. `said`: of its record."""
        self.tick(name)
        batches = batches or self.workload.batches
        training = Trainer(copy, batches, surrogate=self.probe.surrogate, floor=self.probe.floor)
        enough = lambda losses: clearly_fallen(losses, len(batches), self.chance, self.probe.floor)  # noqa: E731
        training.train(steps or self.steps, deadline, norms=False, enough=enough)
        return training.record(name, **said)

    def until_compared(self, runs_left: int) -> float:
        """The same, but with enough time to compare a run with a probe that was cut off, if that does not take long."""
        least = FEWEST_COMPARED * self.step_seconds if held_up(self.probe, self.chance) else 0.0
        return max(self.until(runs_left), now() + min(least, LONGEST_COMPARISON))

    def until(self, runs_left: int) -> float:
        """The deadline of the next of so many runs: half of the time that is left, for the last one all. The most promising come first."""
        at = now()
        return at + max(0.0, self.deadline - at) / min(2, max(1, runs_left))

    def explains(self, run: Run) -> bool:
        """Whether a run at another rate learns, and clearly more than the probe, which may have crawled down nearly as far."""
        further = relative_decrease(run, self.chance) >= relative_decrease(self.probe, self.chance) + CLEAR_FALL
        return self.learns(run) and (further or run.ended == "learned" or held_up(self.probe, self.chance))

    def learns(self, run: Run) -> bool:
        return outcome(run, self.chance) == "learns" or faster(run, self.probe, self.chance)


def after(failure: Failure, watched: Sequence[Watched], levels_of: Levels, *, rated: bool) -> list[Run]:
    """Other rates of the user's optimizer (`rated`: it has one) until one explains it, another order, and one batch if none did."""
    factors = rate_factors(failure.probe, failure.chance, watched) if rated else ()
    kept = state_kept(failure)
    runs = other_rates(failure, factors)
    learned = any(map(failure.learns, runs))
    runs += longer(failure, runs)
    again = other_order(failure, runs_left=1 if learned else 2)
    runs += again
    if not learned and not any(map(failure.learns, [*kept, *again])):
        runs += one_batch(failure, levels_of)
    return [*kept, *runs]


def state_kept(failure: Failure) -> list[Run]:
    """The probe again with a single optimizer, if the script makes a new one again and again."""
    deadline = failure.until(3)
    if not forgettings(failure.workload.optimizer) or now() > deadline:
        return []
    copy = fork(failure.workload, seed=failure.seed)
    for hook in forgettings(copy.optimizer):
        hook.steps = 0
    return [failure.repeat(ONE_OPTIMIZER, copy, deadline, chance=failure.chance)]


def other_order(failure: Failure, runs_left: int = 1) -> list[Run]:
    """The probe again with the same weights, its batches in another order: at the edge of stability the order decides."""
    batches, seed = failure.workload.batches, failure.seed + 1
    deadline = failure.until(runs_left)
    if len(batches) < 2 or now() > deadline:
        return []
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    copy, mixed = fork(failure.workload, seed=seed), [batches[i] for i in order]
    return [failure.repeat("other order", copy, deadline, mixed, rate_factor=1.0)]


def other_rates(failure: Failure, factors: Sequence[float]) -> list[Run]:
    """The probe again, from the same weights and batches, at other rates; until one learns what the probe did not."""
    runs: list[Run] = []
    for i, factor in enumerate(factors):
        deadline = failure.until(len(factors) - i + 1) if i else failure.until_compared(len(factors) + 1)
        if now() >= deadline:
            break
        copy = fork(failure.workload, seed=failure.seed)
        for group in copy.optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        runs.append(failure.repeat(f"rate x{factor:g}", copy, deadline, rate_factor=factor))
        if failure.explains(runs[-1]):
            break
    return runs


def longer(failure: Failure, runs: Sequence[Run]) -> list[Run]:
    """The probe again, for many more steps, if a higher rate learned so fast that its own rate may get there in them."""
    higher = [r for r in runs if (r.rate_factor or 1) > 1 and failure.explains(r)]
    steps = TIMES_LONGER * failure.steps
    deadline = min(failure.until(2), now() + LONGER_SECONDS)
    if not higher or held_up(failure.probe, failure.chance) or steps_to_learn(higher[-1], failure.chance) > steps:
        return []
    copy = fork(failure.workload, seed=failure.seed)
    return [failure.repeat(SAME_RATE_LONGER, copy, deadline, steps=steps, chance=failure.chance)]


def one_batch(failure: Failure, levels_of: Levels) -> list[Run]:
    """Adam on a few samples of the first batch, at two rates; until one learns more than their mean."""
    runs = []
    batch = some_samples(failure.workload, ONE_BATCH)
    chance, floor = levels_of(batch)
    for i, rate in enumerate(ONE_BATCH_RATES):
        deadline = failure.until(len(ONE_BATCH_RATES) - i)
        if now() >= deadline:
            break
        failure.tick(f"one batch, Adam {rate:g}")
        copy = fork(failure.workload, seed=failure.seed)
        copy.optimizer = torch.optim.Adam([p for p in copy.model.parameters() if p.requires_grad], lr=rate)
        training = Trainer(copy, [batch], surrogate=failure.probe.surrogate, floor=floor)
        fallen = lambda losses: clearly_fallen(losses, 1, chance, floor, 0.5)  # noqa: E731
        training.train(ONE_BATCH_STEPS, deadline, norms=False, enough=fallen)
        while (
            training.ended == "done"
            and training.step < ONE_BATCH_MOST
            and on_its_way(Run("", tuple(training.losses), chance=chance, floor=floor))
        ):
            training.train(training.step + ONE_BATCH_STEPS, deadline, norms=False, enough=fallen)
        runs.append(training.record(f"adam {rate:g} on one batch", chance=chance))
        if outcome(runs[-1]) == "learns":
            break
    return runs


def clearly_fallen(losses: list[float], batches: int, chance: float | None, floor: float = 0.0, share: float = 2 * CLEAR_FALL) -> bool:
    """A fall by `share` of the reference that holds over a whole round of batches, twice what counts as learning."""
    window = max(WINDOW, batches)
    if len(losses) < 2 * window:
        return False
    run = Run("", tuple(losses), batches=batches, floor=floor)
    return relative_decrease(run, chance) >= share and all(b < losses[0] for b in losses[-WINDOW:])
