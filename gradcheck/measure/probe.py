"""The course of the probe: measured early on a schedule, longer when nothing was learned, measured again at its end."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradcheck.analysis.convergence import CLEAR_FALL, FEWEST_STEPS, on_its_way, outcome, relapse, relative_decrease, unsettled
from gradcheck.training.trainer import Enough, Observe, Trainer
from gradcheck.types.training import Run
from gradcheck.workload.lockstep import now

EARLY = (0, 1, 3, 10, 30, 100, 300, 1000)  # measured steps before the last ones
FINAL_STEPS = 4  # measured steps at the end: dead units are those that several batches never wake
LONGER = 3  # a probe that has not learned is given this many times its steps before it is called failed
FURTHER = 30  # and one that has left its start, and still falls, this many times
FURTHER_SECONDS = 4.0  # at most
CHECKED = 50  # steps after which it is looked at again
# Seconds. Steps shorter than this gain nothing from a second thread, and lose much to it on a machine that is otherwise busy.
SMALL_STEP = 0.03


@dataclass
class Probe:
    """`steps`: how many it takes if it learns. `observe`: takes a measured one. `chance()`: the loss of the best constant prediction."""

    training: Trainer
    steps: int
    observe: Observe
    chance: Callable[[], float | None]
    tick: Callable[[str, float], None]
    final: int = FINAL_STEPS  # measured steps at the end that there was time for
    dear: float = 0.0  # seconds of the last measured step

    def run(self, until: Callable[[], float], *, whole: bool, end: float, spare: float) -> None:
        """`until`: the deadline, by how long steps take. `whole`: to where it can be told whether the training learns, not only through the
        measured steps. `end`: until when the last measured ones may go on; `spare`: seconds that they may take in any case."""
        steps, training = self.steps, self.training
        body = max(1, steps - FINAL_STEPS)
        deadline = self._begin(body, until)
        if whole and training.ended == "done" and self._doubtful():
            self._train(LONGER * steps - FINAL_STEPS, deadline, lambda _: not self._doubtful(2 * CLEAR_FALL))
        if whole and training.ended == "done" and self._on_its_way():
            end = min(deadline, now() + FURTHER_SECONDS)
            self._train(FURTHER * steps, end, lambda losses: len(losses) % CHECKED == 0 and not self._on_its_way())
            training.ended = "done" if training.ended in ("budget", "learned") else training.ended
        if training.ended in ("done", "budget", "learned") and steps > FINAL_STEPS:
            self._measure_last(end, spare)

    def _observe(self, step: int, batch: Any) -> float:
        started = now()
        loss = self.observe(step, batch)
        self.dear = now() - started
        return loss

    def _begin(self, body: int, until: Callable[[], float]) -> float:
        """The first steps, with one thread where they are short. Returns the deadline."""
        training = self.training
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._train(1, until())
        started = time.perf_counter()
        self._train(min(3, body), until())
        if time.perf_counter() - started > SMALL_STEP * max(1, training.step - 1):
            torch.set_num_threads(threads)
        deadline = until()
        self._train(body, deadline)
        return deadline

    def _train(self, steps: int, deadline: float, enough: Enough | None = None) -> None:
        whole = steps if enough is not None else self.steps
        phase = "probe, longer" if enough is not None else "probe"
        early = {t for t in EARLY if t < max(1, self.steps - FINAL_STEPS)}
        show = lambda t: self.tick(phase, (t + 1) / whole)  # noqa: E731
        self.training.train(steps, deadline, measured=early, observe=self._observe, enough=enough, tick=show)

    def _measure_last(self, end: float, spare: float) -> None:
        training = self.training
        self.final = min(FINAL_STEPS, int(max(end - now(), spare) / max(self.dear, 1e-6)))
        if not self.final:
            training.ended = "budget"
            return
        ended = "budget" if training.ended == "budget" else "done"
        training.ended = "done"
        last = training.step + self.final
        training.train(last, measured=range(training.step, last), observe=self._observe)
        training.ended = ended if training.ended == "done" else training.ended

    def _so_far(self) -> Run:
        training = self.training
        return Run("probe", tuple(training.losses), batches=len(training.batches), surrogate=training.surrogate, floor=training.floor)

    def _doubtful(self, clear: float = CLEAR_FALL) -> bool:
        run, chance = self._so_far(), self.chance()
        return relative_decrease(run, chance) < clear or unsettled(run, chance) or relapse(run, chance) is not None

    def _on_its_way(self) -> bool:
        return on_its_way(self._so_far(), self.chance())


def told_by(probe: Run, own: Sequence[float], planned: int, chance: float | None) -> Run:
    """The run that is judged: the probe, or the script's own steps (their losses), where these know better.

    They do where the budget cut the probe off too early and there are more of them; and where they learn, while the same steps on the copy
    do not: its few batches, again and again, are then another training.
    """
    if len(own) < 2 or not all(map(math.isfinite, own)):
        return probe
    script = replace(probe, name="the script's own steps", losses=tuple(own), gradient_norms=(), batches=len(own))
    n = min(len(own), len(probe.losses))
    if probe.ended == "budget" and len(probe.losses) < FEWEST_STEPS:
        return script if len(own) > n else probe
    if probe.ended != "done" or probe.surrogate or n < planned or outcome(probe, chance) not in ("stalls", "diverges"):
        return probe
    theirs, ours = (outcome(replace(run, losses=run.losses[:n]), chance) for run in (script, probe))
    return script if theirs == "learns" != ours and relapse(script, chance) is None else probe
