"""The story of watching: hooks go into the process, some steps of the user's own loop are measured and judged, hooks come out again.

with gradcheck.watch(model, optimizer, every=50) as board:
    for batch in loader:
        ...                       # the loop as it is
board.report().to_json("run.json")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gradcheck.config.settings import OVERHEAD, Settings, settings_from
from gradcheck.errors import ConfigError, TargetError, TrainingStopped
from gradcheck.instrument.loader_batches import LoaderBatches
from gradcheck.instrument.traced_optimizer import inner_optimizer
from gradcheck.live.acting import Actor
from gradcheck.live.cadence import StepTimer
from gradcheck.live.live_judge import LiveJudge, at_least
from gradcheck.live.loop_monitor import LoopMonitor
from gradcheck.live.record import Record
from gradcheck.live.sinks import Sink, SinkDispatcher
from gradcheck.live.spikes import SpikeFiles
from gradcheck.types.finding import SEVERITIES, Finding, Severity
from gradcheck.types.gauges import LiveFinding, live_findings
from gradcheck.types.location import Location
from gradcheck.types.report import Report

SPIKES = ".gradcheck/spikes"  # folder for their batches


def watched(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    loss: nn.Module | Callable[..., Any] | None = None,
    every: int | None = None,
    overhead: float = OVERHEAD,
    stop_on: Severity | None = None,
    name: str = "the watched run",
    on_measured: Callable[[Board], None] | None = None,
    on_finding: Callable[[LiveFinding, int], None] | None = None,
    keep_spikes: int = 0,
    spikes: str | Path = SPIKES,
    sinks: Sequence[Sink] = (),
    config: Settings | Mapping[str, Any] | str | Path | None = None,
) -> Board:
    """The run that `gradcheck.watch` reports on. Raises ConfigError for bad settings, TargetError for what is not a model or optimizer."""
    if not isinstance(model, nn.Module):
        raise TargetError(f"watch needs a torch.nn.Module, not {type(model).__name__}", hint="gradcheck.watch(model, optimizer)")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TargetError(f"watch needs a torch.optim.Optimizer, not {type(optimizer).__name__}", hint="gradcheck.watch(model, optimizer)")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ConfigError(f"every must be a number of steps, 1 or more; got {every!r}", hint="without it, overhead=0.03 decides")
    if isinstance(overhead, bool) or not isinstance(overhead, int | float) or not 0 < overhead <= 1:
        raise ConfigError(f"overhead must be a share of the run's time, above 0 and at most 1; got {overhead!r}", hint="overhead=0.03")
    if stop_on is not None and stop_on not in SEVERITIES:
        raise ConfigError(f"stop_on must be error, warning, info or None; got {stop_on!r}", hint='stop_on="error"')
    if isinstance(keep_spikes, bool) or not isinstance(keep_spikes, int) or keep_spikes < 0:
        raise ConfigError(f"keep_spikes must be a number of batches; got {keep_spikes!r}", hint="keep_spikes=5")
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise ConfigError(f"{type(sink).__name__} is not a sink", hint="sinks=[gradcheck.integrations.tensorboard.TensorBoard(writer)]")
    whole = nn.ModuleDict({"model": model, "loss": loss}) if isinstance(loss, nn.Module) and any(loss.parameters()) else model
    if on_finding is not None and not callable(on_finding):
        raise ConfigError(f"on_finding must be callable; got {on_finding!r}", hint="on_finding=lambda finding, step: ...")
    actor = Actor([("info", on_finding)] if on_finding is not None else [])
    board = Board(whole, inner_optimizer(optimizer), every, overhead, stop_on, name, on_measured, actor, sinks, settings_from(config))
    board._follower.spikes.files = SpikeFiles(Path(spikes), keep_spikes) if keep_spikes else None
    return board


JUDGING = 1 / 4  # of what watching may take, for judging


class Board:
    """A watched run. `record` holds what was measured so far, `stopped` the finding that ended the run, if one did."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        every: int | None,
        overhead: float,
        stop_on: Severity | None,
        name: str,
        on_measured: Callable[[Board], None] | None,
        actor: Actor,
        sinks: Sequence[Sink],
        settings: Settings,
    ) -> None:
        self.stop_on, self.on_measured, self._actor = stop_on, on_measured, actor
        self.stopped: Finding | None = None
        self.record = Record(model, name)
        self.feed = SinkDispatcher(sinks)
        self.share = overhead
        self._verdicts = LiveJudge(self.record, settings, JUDGING * overhead)
        self._follower = LoopMonitor(model, optimizer, every, overhead, self.record, self._measured)
        self._open = False

    def __enter__(self) -> Board:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        self.close()
        return isinstance(error, TrainingStopped) and error.finding is self.stopped

    def start(self) -> Board:
        """Puts the hooks in. One board at a time can watch in a process."""
        global _current
        if self._open:
            return self
        if _current is not None:
            raise ConfigError("another run is being watched in this process", hint="close() it first: one board at a time")
        _current, self._open = self, True
        try:
            self._follower.start()
            if not self.leads:  # one process keeps batches
                self._follower.spikes.files = self._follower.spikes.batches.fetched = None
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Takes the hooks out. May be called any number of times; the report stays."""
        global _current
        if self._open:
            _current, self._open = None, False
            self._follower.stop()
            self._verdicts.fresh = False
            if self.leads and (self.feed.sinks or self._actor.acts) and self.record.measured:
                self.feed.finish(self.report())
                self._actor.look(live_findings(self.report().findings), self.steps)
                self._actor.finish()

    def step(self, loss: torch.Tensor | float) -> None:
        """Gives the loss of the coming step (call it before `optimizer.step()`), if what is passed to `backward` is not it."""
        value = loss.detach() if isinstance(loss, torch.Tensor) else torch.tensor(float(loss), device="cpu")
        self._follower.losses.explicit = value.sum() if value.dim() else value

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far, the worst first."""
        return self.report().findings

    def report(self) -> Report:
        """The run so far as a Report: `to_json` saves it, for `gradcheck report` and `gradcheck diff`."""
        return self._verdicts.report() if self.leads else self._verdicts.silent()

    def _repr_html_(self) -> str:
        """What a notebook shows: the run so far."""
        return self.report()._repr_html_()

    @property
    def leads(self) -> bool:
        """Whether this process reports: in a distributed training, rank 0 does, for all ranks. The others' reports hold no finding."""
        return self._follower.together is None or self._follower.together.leads

    @property
    def steps(self) -> int:
        """Steps of the optimizer so far."""
        return self.record.steps

    @property
    def loss(self) -> float:
        """The last loss that was read."""
        return self.record.losses.last

    @property
    def pace(self) -> StepTimer:
        """How long its steps take."""
        return self._follower.pace

    @property
    def overhead(self) -> float | None:
        """Share of the run's time that watching takes, measured in the run; None as long as that is unknown."""
        return self.pace.overhead

    @property
    def failure(self) -> Exception | None:
        """What went wrong in gradcheck's own code: the loop went on, but is no longer watched."""
        return self._follower.hooks.failure

    def due(self) -> bool:
        """Whether judging again is worth its time: at most a part of what watching may take, but at once if the loss breaks."""
        return self._verdicts.due(urgent=self.record.bad_losses > 0)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Says that a module of the model is being called now, and has been since before the hooks were installed."""
        self._follower.tapping.enter(module, args)

    def hand_over(self, batches: LoaderBatches) -> None:
        """Hands over what listened to the program's loaders before the board was started."""
        self._follower.spikes.batches = batches

    def locate(self, sites: Mapping[int, Location], files: list[str]) -> None:
        """Says where modules and optimizers were created, by id, and which files are the user's: findings point there."""
        self.record.sites, self.record.files = sites, files

    def _measured(self) -> None:
        self._verdicts.fresh = False
        ranks = self._follower.together.ranks if self._follower.together is not None else None
        if ranks is not None and self.stop_on is not None:
            self._stop(ranks.called_stop())
        if not self.leads:
            return
        if self.on_measured is not None:
            self.on_measured(self)
        judged = self._verdicts.fresh
        if not judged and (self.stop_on is not None or self.feed.sinks or self._actor.acts) and self.due():
            judged = self.report() is not None
        if judged and self._actor.acts:
            self._actor.look(live_findings(self.findings), self.steps)
        self.feed.measured(self.record, self.report() if judged else None)
        if self.stop_on is not None and judged:
            found = at_least(self.findings, self.stop_on)
            if found is not None and ranks is not None and ranks.joined:
                ranks.call_stop(found)  # all stop at the next measured step: a rank that stopped alone would leave the others waiting
            else:
                self._stop(found)

    def _stop(self, found: Finding | None) -> None:
        if found is not None:
            self.stopped = found
            raise TrainingStopped(f"stopped at step {self.steps}: {found.name} ({found.code}) {found.message}", finding=found)


_current: Board | None = None
