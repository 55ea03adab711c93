"""The command `trial`: remedies against each other, and against the untreated model, in paired training."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from gradcheck import interrupts
from gradcheck.cli import guard
from gradcheck.cli.exit import exits
from gradcheck.cli.groups import ConfigOptions, OutputOptions, with_groups
from gradcheck.cli.jobs import named
from gradcheck.cli.options import (
    Arg,
    Color,
    Data,
    Device,
    Dtype,
    LearningRate,
    Loss,
    Optimizer,
    Quiet,
    RulePaths,
    Target,
    ValData,
    checked_color,
    split,
)

if TYPE_CHECKING:
    from gradcheck.config.settings import Settings
    from gradcheck.loading.spec import TargetSpec
    from gradcheck.trials.options import Options
    from gradcheck.types.report import Report

EPILOG = "Exit 0: the trial was held, whatever it found. 2: could not run. 130: interrupted; what was found by then is shown."


@with_groups
def trial(
    ctx: typer.Context,
    *,
    target: Target = None,
    remedy: Annotated[list[str] | None, typer.Option(metavar="NAMES", help="l2,dropout, ... [default: what the scan proposes]")] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="For everything, the scan included.")] = 120.0,
    steps: Annotated[int | None, typer.Option(help="Steps of each training. [default: what the budget allows, 1000 at most]")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of the final. [default: what the budget allows]")] = None,
    search: Annotated[str | None, typer.Option(metavar="grid|random|bayes", help="Search the remedies' strengths.")] = None,
    trials: Annotated[int | None, typer.Option(help="Strengths that the search tries of each remedy. [default: 12]")] = None,
    study: Annotated[str | None, typer.Option(metavar="FILE|URL", help="Keep the search there, and go on with what is in it.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: as many as processors, 4 at most]")] = None,
    folds: Annotated[int, typer.Option(help="Cross-validate with so many folds.")] = 0,
    time_ordered: Annotated[bool, typer.Option("--time-ordered", help="Validate on the last samples, not on random ones.")] = False,
    arg: Arg = None,
    data: Data = None,
    val_data: ValData = None,
    loss: Loss = None,
    optimizer: Optimizer = None,
    lr: LearningRate = None,
    device: Device = None,
    dtype: Dtype = None,
    rules: RulePaths = None,
    outputs: OutputOptions,
    show_all: Annotated[bool, typer.Option("--show-all", help="Say also why remedies were not tried.")] = False,
    config: ConfigOptions,
    color: Color = "auto",
    quiet: Quiet = False,
) -> None:
    """Try remedies on copies of a model, and say which helped, by how much, and how surely.

    Every remedy trains the same weights on the same batches as the untreated model; the best ones meet on fresh seeds.
    """
    started = time.perf_counter()  # the imports belong to the budget
    with exits(color):
        from gradcheck.capture.detect import is_script
        from gradcheck.cli.jobs import arguments_of, jobs_of
        from gradcheck.errors import ConfigError
        from gradcheck.report.formatting import View
        from gradcheck.report.outputs import write_outputs
        from gradcheck.trials.options import Options

        if ctx.obj is not None:
            raise ConfigError("trial takes nothing after --", hint="it needs a model file: gradcheck trial model.py, or model.py:name")
        target = named(target, ctx)
        names = tuple(split(remedy) or ())
        options = Options(names, budget, steps, seeds, search, trials, study, workers, folds, time_ordered)
        settings = config.settings(rule_paths=rules, device=device, dtype=dtype)
        places = outputs.parsed()
        flags = {"data": data, "val_data": val_data, "loss": loss, "optimizer": optimizer, "lr": lr}
        ((spec, settings),) = jobs_of([target], arguments_of(arg or []), flags, settings, None)
        if spec.target.endswith(".py") and not any(flags.values()) and is_script(spec.target):
            hint = "put model, data, loss and optimizer into functions of a module: `gradcheck scan` tells which names it looks for"
            raise ConfigError(f"{spec.target} trains when it is run: a trial needs its parts", hint=hint)
        guard.budget(budget)
        report = _held(spec, options, settings, quiet, started)
        write_outputs([report], places, View(checked_color(color), show_all=show_all))
        outputs.open([report], places)
        sys.exit(interrupts.exit_code() if report.trial is not None and report.trial.ended == "interrupted" else 0)


def _held(spec: TargetSpec, options: Options, settings: Settings, quiet: bool, started: float) -> Report:
    """stdout carries results only: what the user's code prints goes to stderr."""
    from gradcheck.report.progress_bar import progress_bar
    from gradcheck.trials.run import trial_target

    with progress_bar(spec.target, quiet=quiet) as progress, redirect_stdout(sys.stderr):
        return trial_target(spec, options, settings, progress, started)
