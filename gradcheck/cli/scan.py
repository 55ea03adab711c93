"""The command `scan`: parse, one call, render, exit code. Heavy imports stand inside."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gradcheck import rank
from gradcheck.cli import fix as commands_fix
from gradcheck.cli import guard
from gradcheck.cli.exit import FAILED, exits
from gradcheck.cli.options import (
    AllowPartial,
    AllowStale,
    Arg,
    BaselineFile,
    Color,
    Config,
    Data,
    Device,
    Dtype,
    ExitZero,
    ExtendSelect,
    FailOn,
    Ignore,
    Input,
    Isolated,
    LearningRate,
    Loss,
    MaxWarnings,
    NoBaseline,
    OpenPage,
    Optimizer,
    Output,
    Profile,
    Quiet,
    QuietScript,
    RulePaths,
    Sandbox,
    Script,
    Select,
    ShowPassed,
    Targets,
    UnsafeFixes,
    ValData,
    rule_choice,
    settings_of,
    view_of,
)

if TYPE_CHECKING:
    from gradcheck.report.outputs import Output as Written
    from gradcheck.report.outputs import View
    from gradcheck.types.report import Report

Fast = Annotated[bool, typer.Option("--fast", help="A few steps only: what the first steps show, without training experiments.")]
ShowAll = Annotated[bool, typer.Option("--show-all", help="Show all layers in the profile.")]
Statistics = Annotated[bool, typer.Option("--statistics", help="In place of the findings, how many each rule has, over all targets.")]
AddIgnore = Annotated[bool, typer.Option("--add-ignore", help="Write comments that ignore the findings at their lines.")]
Watch = Annotated[bool, typer.Option("--watch", help="Scan again whenever a source file changes. Needs gradcheck[watch].")]


def scan(
    ctx: typer.Context,
    targets: Targets = None,
    arg: Arg = None,
    data: Data = None,
    val_data: ValData = None,
    input: Input = None,
    loss: Loss = None,
    optimizer: Optimizer = None,
    lr: LearningRate = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the probe training, or of the script. [default: 100]")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; a finding must appear in most of them. [default: 1]")] = None,
    device: Device = None,
    dtype: Dtype = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For all of it. [default: 30, or 60 for large models]"),
    ] = None,
    script: Script = False,
    sandbox: Sandbox = False,
    quiet_script: QuietScript = False,
    fix: Annotated[bool, typer.Option("--fix", help="Try remedies too, and show the edits; `gradcheck fix --write` writes them.")] = False,
    unsafe_fixes: UnsafeFixes = False,
    fast: Fast = False,
    select: Select = None,
    ignore: Ignore = None,
    extend_select: ExtendSelect = None,
    rules: RulePaths = None,
    fail_on: FailOn = None,
    exit_zero: ExitZero = False,
    allow_partial: AllowPartial = False,
    max_warnings: MaxWarnings = None,
    baseline: BaselineFile = None,
    no_baseline: NoBaseline = False,
    allow_stale: AllowStale = False,
    output: Output = None,
    open_page: OpenPage = False,
    profile: Profile = False,
    show_passed: ShowPassed = False,
    show_all: ShowAll = False,
    statistics: Statistics = False,
    add_ignore: AddIgnore = False,
    watch: Watch = False,
    config: Config = None,
    isolated: Isolated = False,
    color: Color = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure models and judge them. Without TARGET: the targets of [tool.gradcheck.targets].

    A training script or notebook is run until it has taken some steps; model, loss, data and optimizer are captured from the run. So is
    a command behind `--` where no TARGET stands before it: -- python -m package.train ARGUMENTS, -- torchrun ... train.py ARGUMENTS.
    """
    with exits(color):
        if watch:
            from gradcheck.cli.again import scan_again

            sys.exit(scan_again(sys.argv[1:]))
        from gradcheck.capture.spec import ScriptSpec
        from gradcheck.cli.gate import baseline_path, exit_code, load_known, without_known
        from gradcheck.cli.jobs import arguments_of, flag_names, jobs_of, refuse_flags, scan_all, scan_command, with_scripts
        from gradcheck.cli.program import Orders, run_of
        from gradcheck.report.outputs import parse_outputs

        chosen = rule_choice(select, ignore, extend_select, rules)
        limits = {"steps": steps, "seeds": seeds, "budget": budget, "device": device, "dtype": dtype}
        limits |= {"fast": fast or None, "profile": profile or None, "allow_partial": allow_partial or None}
        settings = settings_of(config, isolated, **chosen, **limits, fail_on=fail_on, max_warnings=max_warnings)
        outputs = parse_outputs(output or (), opened=open_page)
        flags = {"data": data, "val_data": val_data, "inputs": tuple(input or ()), "loss": loss, "optimizer": optimizer, "lr": lr}
        known = load_known(None if no_baseline else baseline_path(settings, baseline, isolated=isolated))
        run = ScriptSpec("", ctx.obj or (), steps, settings.budget, sandbox, quiet_script)
        guard.budget(None if fix else settings.budget, max(1, len(targets or settings.targets)) * settings.seeds)
        speaks = rank.is_rank_zero()  # of the processes of torchrun one does
        if ctx.obj is not None and not targets:
            refuse_flags({"--arg": arg, **flag_names(flags), "--device": device, "--dtype": dtype, "--fix": fix}, "a command after --")
            orders = Orders(run_of(run), config or [], isolated, {k: v for k, v in (chosen | limits).items() if v and k != "steps"})
            reports, failed = scan_command(ctx.obj, orders, quiet), False
        else:
            named = jobs_of(targets or [], arguments_of(arg or []), flags, settings, steps)
            jobs = with_scripts(named, script or ctx.obj is not None, run)
            if fix:
                reports, failed = commands_fix.treat_all(jobs, unsafe_fixes, quiet)
            else:
                reports, failed = scan_all(jobs, run, quiet or not speaks, color)
        if not speaks:
            sys.exit(FAILED if failed else 0)
        reports = without_known(reports, settings, known)
        write(reports, outputs, view_of(settings, color, profile, show_passed, show_all), statistics=statistics, add_ignore=add_ignore)
        if open_page:
            from gradcheck.report.browser import open_reports

            open_reports(reports, outputs)
        sys.exit(FAILED if failed else exit_code(reports, settings, exit_zero=exit_zero, allow_stale=allow_stale))


def write(reports: Sequence[Report], outputs: Sequence[Written], view: View, *, statistics: bool, add_ignore: bool) -> None:
    """The outputs; statistics take the place of what goes to stdout."""
    from gradcheck.report.outputs import write_outputs

    write_outputs(reports, [o for o in outputs if o.path is not None] if statistics else outputs, view)
    if statistics:
        from gradcheck.report.statistics import text

        print(text(reports), end="")
    if add_ignore:
        from gradcheck.report.add_ignores import add_ignores

        count, left = add_ignores(reports)
        print(f"wrote {count} {'comment' if count == 1 else 'comments'}", *left, sep="\n", file=sys.stderr)
