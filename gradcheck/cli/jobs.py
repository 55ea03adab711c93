"""What a command line names, as jobs: model files, scripts, notebooks, commands; and scanning them. Heavy imports are inside functions."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from gradcheck import rank
from gradcheck.cli.exit import FAILED, say

if TYPE_CHECKING:
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.cli.program import ProcessOrders
    from gradcheck.config.settings import Settings
    from gradcheck.loading.spec import TargetSpec
    from gradcheck.types.report import Report


def scan_all(jobs: list[tuple[TargetSpec | ScriptSpec, Settings]], run: ScriptSpec, quiet: bool, color: str) -> tuple[list[Report], bool]:
    """Reports of all targets that could be scanned, and whether one could not. A single target's error is raised.

    `run`: how scripts are run, for what turns out to be one.
    """
    import time

    from gradcheck.errors import GradcheckError
    from gradcheck.report.progress_bar import progress_bar

    reports, failed, started = [], False, time.perf_counter()
    for spec, settings in jobs:
        try:
            # stdout carries results only: what the user's code prints goes to stderr
            with progress_bar(spec.target, quiet=quiet) as progress, redirect_stdout(sys.stderr):
                reports += _scan_one(spec, settings, run, progress, started)
        except GradcheckError as e:
            if len(jobs) == 1:
                raise
            failed = True
            say(e, color)
        started = time.perf_counter()
    if not reports and rank.is_rank_zero():
        sys.exit(FAILED)
    return reports, failed


def scan_command(words: tuple[str, ...], orders: ProcessOrders, quiet: bool) -> list[Report]:
    from gradcheck.cli.program import scan_program
    from gradcheck.live.command import check_interpreter, program_of
    from gradcheck.report.progress_bar import progress_bar

    program = program_of(words, "scan")
    check_interpreter(program)
    with progress_bar(program.name, quiet=quiet) as progress:
        found = scan_program(program, orders, progress)
    if not found:  # another machine's process reports
        sys.exit(0)
    return found


def refuse_flags(given: dict[str, Any], what: str) -> None:
    """Raises ConfigError for a flag that says what a script has of its own."""
    from gradcheck.errors import ConfigError

    flag = next((flag for flag, value in given.items() if value), None)
    if flag == "--fix":
        raise ConfigError(f"--fix does not go with {what}", hint="gradcheck fix train.py -- ARGUMENTS")
    if flag in ("--device", "--dtype"):
        hint = f"the script chooses its own; an option that it has for that comes after --: -- {flag} {given[flag]}"
        raise ConfigError(f"{flag} does not go with {what}", hint=hint)
    if flag is not None:
        raise ConfigError(f"{flag} does not go with {what}", hint="its own model, data, loss and optimizer are used")


def _scan_one(spec: TargetSpec | ScriptSpec, settings: Settings, run: ScriptSpec, progress: Any, started: float) -> list[Report]:
    """`started`: the import of torch belongs to the seconds of the first report."""
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.errors import TargetError

    if progress is not None:
        progress("importing torch", 0.0)
    if isinstance(spec, ScriptSpec):
        from gradcheck.pipeline import scan_script

        return scan_script(spec, settings, progress, started)
    from gradcheck.loading.importing import TrainsWhenImported
    from gradcheck.pipeline import scan_target

    try:
        return [scan_target(spec, settings, progress, started)]
    except TrainsWhenImported:
        if not spec.target.endswith(".py"):
            raise
        return _scan_one(*with_scripts([(spec, settings)], True, run)[0], run, progress, started)
    except SystemExit as e:
        hint = "guard it with `if __name__ == '__main__':`"
        raise TargetError(f"{spec.target} ended the program: sys.exit({e.code!r})", hint=hint) from e


def scan_configured(targets: list[str], settings: Settings, quiet: bool) -> tuple[list[Report], bool]:
    """Scans targets, or else the configured ones, with nothing but the settings: reports, and whether a target failed."""
    from gradcheck.capture.spec import ScriptSpec

    run = ScriptSpec("", budget=settings.budget)
    return scan_all(with_scripts(jobs_of(targets, {}, {}, settings, None), False, run), run, quiet, "auto")


def jobs_of(
    targets: list[str], arguments: dict[str, str], flags: dict[str, Any], settings: Settings, steps: int | None
) -> list[tuple[TargetSpec, Settings]]:
    """What to scan: targets of the command line (names of configured ones too), else all configured ones."""
    from dataclasses import replace

    from gradcheck.config.settings import TargetSettings
    from gradcheck.errors import ConfigError
    from gradcheck.loading.spec import TargetSpec

    names = targets or list(settings.targets)
    if not names:
        hint = "name one, as in gradcheck scan model.py, or list targets in [tool.gradcheck.targets.NAME] with model = ..."
        raise ConfigError("no target", hint=hint)
    jobs = []
    for name in names:
        own = settings.targets.get(name) or TargetSettings(name)
        base = {"data": own.data, "val_data": own.val_data, "inputs": own.input, "loss": own.loss, "optimizer": own.optimizer, "lr": own.lr}
        values = base | {k: v for k, v in flags.items() if v not in (None, ())}
        spec = TargetSpec(own.target, arguments={**own.args, **arguments}, device=settings.device, dtype=settings.dtype, **values)
        jobs.append((spec, replace(settings, steps=own.steps) if own.steps and steps is None else settings))
    return jobs


def with_scripts(
    jobs: list[tuple[TargetSpec, Settings]], forced: bool, run: ScriptSpec, flags: dict[str, Any] | None = None
) -> list[tuple[TargetSpec | ScriptSpec, Settings]]:
    """The jobs, training scripts among them told from model files. Raises ConfigError for what a script cannot be given.

    `run`: how scripts are run. `forced`: all targets are scripts. `flags`: others of the command line that no script can be given.
    """
    from dataclasses import replace
    from pathlib import Path

    from gradcheck.capture.detect import is_script, scripts_in
    from gradcheck.config.settings import Settings
    from gradcheck.errors import ConfigError
    from gradcheck.workload.notebook import SUFFIX

    found: list[tuple[TargetSpec | ScriptSpec, Settings]] = []
    for spec, settings in jobs:
        if Path(spec.target).is_dir():
            scripts = scripts_in(Path(spec.target))
            hint = f"gradcheck scan {scripts[0]}" if scripts else "name the file that trains, or that builds the model"
            raise ConfigError(f"{spec.target} is a folder", hint=hint)
        named: dict[str, Any] = {
            "--arg": spec.arguments,
            "--data": spec.data,
            "--input": spec.inputs,
            "--loss": spec.loss,
            "--optimizer": spec.optimizer,
        }
        notebook = spec.target.endswith(SUFFIX)
        if forced and not (notebook or spec.target.endswith(".py")):
            raise ConfigError(f"{spec.target} is not a script", hint="arguments after -- are for files that train when they run")
        if notebook and run.arguments:
            raise ConfigError(f"{spec.target} is a notebook: it takes no arguments", hint=f"gradcheck scan {spec.target}")
        if spec.init_only and (forced or notebook):
            raise ConfigError(
                "--init-only does not go with a training script", hint="name the function that builds the model: file.py:name"
            )
        built = spec.init_only or any(named.values())
        is_one = forced or notebook or (spec.target.endswith(".py") and not built and is_script(spec.target))
        if not is_one and run.replay:
            raise ConfigError(f"--replay is for training scripts, and {spec.target} is none", hint="gradcheck scan train.py --replay FILE")
        if not is_one:
            found.append((spec, settings))
            continue
        refuse_flags(
            named | {"--val-data": spec.val_data, "--lr": spec.lr} | (flags or {}), "a notebook" if notebook else "a training script"
        )
        if run.steps is not None:  # of the script, not of the probe on its copies
            settings = replace(settings, steps=Settings().steps)
        found.append((replace(run, path=spec.target, kind="notebook" if notebook else "script"), settings))
    return found


def arguments_of(texts: list[str]) -> dict[str, str]:
    from gradcheck.errors import ConfigError

    for text in texts:
        if not text.partition("=")[0].isidentifier() or "=" not in text:
            raise ConfigError(f"--arg {text!r} is not KEY=VALUE", hint="--arg depth=12")
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def named(target: str | None, ctx: typer.Context) -> str:
    """Raises ConfigError when there is no target, or a command in its place."""
    from gradcheck.errors import ConfigError

    if target is not None:
        return target
    if ctx.obj is not None:
        hint = "name the file: gradcheck fix train.py -- ARGUMENTS; `gradcheck scan` and `gradcheck watch` take commands"
        raise ConfigError("fix takes no command after --", hint=hint)
    raise ConfigError("no target", hint=f"gradcheck {ctx.info_name} model.py, or model.py:name")
