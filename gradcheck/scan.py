"""The story of a scan: a target becomes a workload, is measured, judged, and reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcheck import __version__
from gradcheck.config import Settings, settings_from
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen, needs
from gradcheck.measure.measure import Plan, measure
from gradcheck.measure.untouched import untouched
from gradcheck.nouns.report import Report
from gradcheck.target.load import load
from gradcheck.target.objects import from_objects
from gradcheck.target.spec import TargetSpec
from gradcheck.target.workload import Workload

DEFAULT_BUDGET = 60.0  # seconds a seed: a scan is something that one waits for

Progress = Callable[[str, float], None]  # phase, fraction done


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
    Raises `gradcheck.errors.TargetError` when the workload does not run, `ConfigError` for bad settings.
    """
    settings = settings_from(config)
    if steps is not None:
        settings = settings.with_flags(steps=steps)
    with untouched():
        workload = from_objects(model, data, loss=loss, optimizer=optimizer, val_data=val_data, training_step=training_step)
        return scan_workload(workload, settings)


def scan_target(spec: TargetSpec, settings: Settings, progress: Progress | None = None) -> Report:
    """The same for a target that is named: a model file or an import path."""
    if progress is not None:
        progress("loading", 0.0)
    with untouched():
        return scan_workload(load(spec), settings, progress)


def scan_workload(workload: Workload, settings: Settings, progress: Progress | None = None) -> Report:
    """Measure, judge, report."""
    started = time.perf_counter()
    rules = chosen(settings)
    measurements = []
    for seed in range(settings.seeds):
        if seed and workload.rebuild is not None:
            workload = workload.rebuild(seed)
        plan = Plan(settings.steps, settings.budget or DEFAULT_BUDGET, seed, needs(rules), settings.profile)
        measurements.append(measure(workload, plan, progress or (lambda phase, fraction: None)))
    findings, suppressed, states = judge(measurements, rules, settings)
    return Report(
        measurements[0].target,
        findings,
        states,
        tuple(measurements),
        suppressed,
        time.perf_counter() - started,
        __version__,
    )
