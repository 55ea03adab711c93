"""The Python face: the user's objects become a workload, and one call does the rest. The stories are imported when they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradcheck.config.settings import OVERHEAD, Settings, settings_from
from gradcheck.rank import is_rank_zero
from gradcheck.trials.options import DEFAULT_BUDGET, Options
from gradcheck.types.finding import Severity
from gradcheck.types.gauges import LiveFinding
from gradcheck.types.report import Report
from gradcheck.types.trial import TrialResult
from gradcheck.workload.process_state import untouched

if TYPE_CHECKING:
    from gradcheck.live.sinks import Sink
    from gradcheck.live.watch import Board
    from gradcheck.repair.fixed import Fixed


def scan(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    val_data: Any = None,
    training_step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    steps: int | None = None,
    config: Settings | Mapping[str, Any] | str | Path | None = None,
) -> Report:
    """Measures a model on data and says what will keep it from training. Changes nothing of what it is given.

    `data`: one batch or an iterable of batches; a batch is a tensor, `(inputs, target)`, or a dict.
    `loss(output, target)` gives a scalar; `training_step(model, batch)` gives full control instead.
    `steps`: optimizer steps of the probe training. `config`: a file, or a mapping with the keys of `[tool.gradcheck]`.
    A model in DistributedDataParallel, or of sharded parameters (`fully_shard`, other DTensors), all processes scan at the same point, each
    with its own batches: they are measured as one, and rank 0 reports. The reports of the others hold no findings. Any other model, such as
    a stage of a pipeline, each process scans by itself.
    Raises `gradcheck.errors.TargetError` when the workload does not run, `ConfigError` for bad settings.
    """
    from gradcheck.loading.objects import from_objects
    from gradcheck.pipeline import by_itself, scan_over_ranks, scan_workload
    from gradcheck.workload.lockstep import ranks_of

    settings = settings_from(config)
    if steps is not None:
        settings = settings.with_flags(steps=steps)
    with untouched(), ranks_of(model) as ranks:
        workload = from_objects(model, data, loss=loss, optimizer=optimizer, val_data=val_data, training_step=training_step)
        if ranks is not None and ranks.joined:
            return scan_over_ranks(workload, settings, ranks)
        report = scan_workload(workload, settings, seen=by_itself(ranks))
    return report if ranks is None or is_rank_zero() else replace(report, findings=(), suppressed=(), rules=())


def fix(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    val_data: Any = None,
    training_step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    unsafe: bool = False,
    steps: int | None = None,
    seeds: int = 3,
    budget: float | None = None,
    config: Settings | Mapping[str, Any] | str | Path | None = None,
) -> Fixed:
    """Scans a model, tries remedies on copies, and returns the treated copy. Changes nothing of what it is given.

    Data, loss and the others are as in `gradcheck.scan`. `unsafe`: also remedies that change the architecture or the checkpoint keys.
    `steps`: of each short training; `seeds`: how many pairs prove a cure; `budget`: seconds for both, the scan not counted.
    Raises `gradcheck.errors.TargetError` when the workload does not run, `ConfigError` for bad settings.
    """
    from gradcheck.loading.objects import from_objects
    from gradcheck.repair.options import options_of
    from gradcheck.repair.story import fix_workload

    settings, options = settings_from(config), options_of(unsafe, steps, seeds, budget)
    with untouched():
        workload = from_objects(model, data, loss=loss, optimizer=optimizer, val_data=val_data, training_step=training_step)
        return fix_workload(workload, settings, options)


def trial(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    val_data: Any = None,
    training_step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    remedies: Sequence[str] = (),
    budget: float = DEFAULT_BUDGET,
    steps: int | None = None,
    seeds: int | None = None,
    search: str | None = None,
    trials: int | None = None,
    study: str | None = None,
    workers: int | None = None,
    folds: int = 0,
    time_ordered: bool = False,
    config: Settings | Mapping[str, Any] | str | Path | None = None,
) -> TrialResult:
    """Trains copies of a model with and without remedies, and says which helps, by how much, and how surely. Changes nothing it is given.

    Model, data, loss and optimizer are those of `gradcheck.scan`. `remedies`: names; else what the scan proposes and what is usual.
    `budget`: seconds. `steps`: of every run, `seeds`: of the final; else what the budget allows. `search`: "grid", "random" or "bayes"
    over the strengths (`trials` of each remedy, stored in `study`). `workers`: processes (as many as
    processors). `folds`: of a cross-validation. `time_ordered`: validate on the last
    samples. Ctrl-C ends the trial early: the result has what was found by then. Raises TargetError and ConfigError as `scan` does.
    """
    from gradcheck.loading.objects import from_objects
    from gradcheck.trials.run import BATCHES, trial_workload

    names = (remedies,) if isinstance(remedies, str) else tuple(remedies)
    options = Options(names, budget, steps, seeds, search, trials, study, workers, folds, time_ordered)
    settings = settings_from(config)
    with untouched():
        workload = from_objects(
            model, data, loss=loss, optimizer=optimizer, val_data=val_data, training_step=training_step, batches=BATCHES
        )
        result = trial_workload(workload, options, settings).trial
    assert result is not None
    return result


def watch(
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
    sinks: Sequence[Sink] = (),
    config: Settings | Mapping[str, Any] | str | Path | None = None,
) -> Board:
    """Watches a training loop that runs in a `with` block, or between `start()` and `close()`. The loop is not changed, nor its result.

    `optimizer`: whose steps are counted; None: the first one that trains the model. `loss`: the loss function; a module that holds
    parameters of its own belongs to the model then. The first four steps are measured, and then as many as `overhead`, the share of the
    run's time that watching may take, allows, at most one in 50; or, with `every`, every so many.
    `stop_on`: "error" or "warning" ends the loop at the next measured step, with `gradcheck.errors.TrainingStopped`, which the `with`
    block takes up: the program goes on behind it. `on_measured`: called with the board after each measured step. `on_finding`: called
    once with each finding (its `severity`, `code`, `name`, `message`, `place`) and the step that showed it, in a thread of its own.
    `keep_spikes`: the batches of so many spikes are kept in `.gradcheck/spikes`, for `gradcheck scan --replay`.
    `sinks`: trackers of experiments that get the numbers of each measured step: see gradcheck/integrations.
    `config`: a file, or a mapping with the keys of `[tool.gradcheck]`. Of the processes of a distributed training all call it, at the same
    point, and rank 0 reports: `board.leads`.
    Raises `gradcheck.errors.ConfigError` for bad settings, `TargetError` for what is neither a model nor an optimizer.
    """
    from gradcheck.live.watch import watched

    return watched(
        model,
        optimizer,
        loss=loss,
        every=every,
        overhead=overhead,
        stop_on=stop_on,
        name=name,
        on_measured=on_measured,
        on_finding=on_finding,
        keep_spikes=keep_spikes,
        sinks=sinks,
        config=config,
    )
