"""The command `scan`: parse, one call, render, exit code; with `--watch` again when a file changes. Heavy imports are inside functions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradcheck import rank
from gradcheck.cli import fix as commands_fix
from gradcheck.cli import guard
from gradcheck.cli.exit import FAILED, exits
from gradcheck.cli.groups import (
    BaselineOptions,
    ConfigOptions,
    GateOptions,
    OutputOptions,
    PartOptions,
    RuleOptions,
    ScriptOptions,
    ViewOptions,
    with_groups,
)
from gradcheck.cli.options import Color, Device, Dtype, Quiet, Targets, UnsafeFixes

if TYPE_CHECKING:
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.types.report import Report

Fast = Annotated[bool, typer.Option("--fast", help="A few steps only: what the first steps show, without training experiments.")]
InitOnly = Annotated[
    bool, typer.Option("--init-only", help="Of a model that no machine holds: how it is built, initialised and adapted, and its memory.")
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep no copy of the model in memory: what is not being trained goes to the host, or a file.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Scan again whenever a source file changes. Needs gradcheck[watch].")]


@with_groups
def scan(
    ctx: typer.Context,
    *,
    targets: Targets = None,
    parts: PartOptions,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the probe training, or of the script. [default: 100]")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; a finding must appear in most of them. [default: 1]")] = None,
    device: Device = None,
    dtype: Dtype = None,
    budget: Annotated[float | None, typer.Option(metavar="SECONDS", help="For all of it. [default: 30, or 60 for large models]")] = None,
    scripts: ScriptOptions,
    fix: Annotated[bool, typer.Option("--fix", help="Try remedies too, and show the edits; `gradcheck fix --write` writes them.")] = False,
    unsafe_fixes: UnsafeFixes = False,
    fast: Fast = False,
    init_only: InitOnly = False,
    offload: Offload = False,
    rules: RuleOptions,
    gate: GateOptions,
    baseline: BaselineOptions,
    outputs: OutputOptions,
    view: ViewOptions,
    watch: Watch = False,
    config: ConfigOptions,
    color: Color = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure models and judge them. Without TARGET: the targets of [tool.gradcheck.targets].

    A training script or notebook is run until it has taken some steps; model, loss, data and optimizer are captured from the run. So is
    a command after `--` where no TARGET comes before it: -- python -m package.train ARGUMENTS, -- torchrun ... train.py ARGUMENTS.
    """
    with exits(color):
        from gradcheck.cli.gate import exit_code, without_known
        from gradcheck.cli.jobs import arguments_of, jobs_of, refuse_flags, scan_all, with_scripts

        if watch:
            sys.exit(scan_again(sys.argv[1:]))
        own = {"--device": device, "--dtype": dtype}
        limits = {"steps": steps, "seeds": seeds, "budget": budget, "device": device, "dtype": dtype}
        limits |= {"fast": fast or None, "offload": offload or None, "profile": view.profile or None}
        ends = gate.flags | ({"allow_partial": True} if init_only else {})
        settings = config.settings(**rules.choice, **limits, **ends, max_warnings=baseline.max_warnings)
        places, known = outputs.parsed(), baseline.known(settings, config.isolated)
        run = scripts.spec(ctx.obj, steps, settings.budget)
        guard.budget(None if fix else settings.budget, max(1, len(targets or settings.targets)) * settings.seeds)
        speaks = rank.is_rank_zero()  # of the processes of torchrun one does
        if ctx.obj is not None and not targets:
            refuse_flags({**parts.named, **own, "--fix": fix}, "a command after --")
            reports, failed = _scan_command(ctx.obj, run, config, rules.choice | limits | gate.flags, quiet), False
        else:
            flags = parts.flags | {"init_only": init_only or None}
            named = jobs_of(targets or [], arguments_of(parts.arg or []), flags, settings, steps)
            jobs = with_scripts(named, scripts.script or ctx.obj is not None, run, own)
            treat = commands_fix.treat_all
            reports, failed = treat(jobs, unsafe_fixes, quiet) if fix else scan_all(jobs, run, quiet or not speaks, color)
        if not speaks:
            sys.exit(FAILED if failed else 0)
        reports = without_known(reports, settings, known)
        view.write(reports, places, settings, color)
        outputs.open(reports, places)
        sys.exit(FAILED if failed else exit_code(reports, settings, exit_zero=gate.exit_zero, allow_stale=baseline.allow_stale))


def _scan_command(words: tuple[str, ...], run: ScriptSpec, config: ConfigOptions, flags: dict[str, Any], quiet: bool) -> list[Report]:
    """Of a program that runs in processes of its own, with these settings in each."""
    from gradcheck.cli.jobs import scan_command
    from gradcheck.cli.program import ProcessOrders, run_of

    own = {name: value for name, value in flags.items() if value and name not in ("steps", "fail_on")}
    return scan_command(words, ProcessOrders(run_of(run), config.config or [], config.isolated, own), quiet)


SUFFIXES = (".py", ".ipynb", ".toml")  # what a scan writes is none of these


def scan_again(words: Sequence[str], folder: Path = Path()) -> int:
    """Scans now, and after every change below the folder, until Ctrl-C; the last exit code. Raises ConfigError without watchfiles."""
    from gradcheck.errors import ConfigError

    try:
        from watchfiles import DefaultFilter, watch
    except ModuleNotFoundError as error:
        raise ConfigError("--watch needs the package watchfiles", hint="pip install 'gradcheck[watch]'") from error

    class Sources(DefaultFilter):
        def __call__(self, change: object, path: str) -> bool:
            return path.endswith(SUFFIXES) and super().__call__(change, path)

    command = [sys.executable, "-P", "-m", "gradcheck", *without_watch(words)]
    code = _scanned(command)
    for changes in watch(folder, watch_filter=Sources(), raise_interrupt=False):
        names = sorted({os.path.relpath(path, folder) for _, path in changes})
        print(f"\n--- {', '.join(names[:3])} changed ---\n", file=sys.stderr)
        code = _scanned(command)
    return code


def without_watch(words: Sequence[str]) -> list[str]:
    """The arguments of the command without `--watch`; what comes after `--` belongs to the script."""
    end = list(words).index("--") if "--" in words else len(words)
    return [word for i, word in enumerate(words) if word != "--watch" or i > end]


def _scanned(command: Sequence[str]) -> int:
    code = subprocess.run(command).returncode
    print("\nwaiting for changes; Ctrl-C ends", file=sys.stderr)
    return code
