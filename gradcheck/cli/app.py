"""The commands: parse, one call, render, exit code. Heavy imports stand inside them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradcheck import rank
from gradcheck.cli import fix as commands_fix
from gradcheck.cli import trial, watch
from gradcheck.cli.completion import format_name, rule_name, rule_words
from gradcheck.cli.exit import FAILED, exits, explain, settings_of, version, wants_text
from gradcheck.cli.project import add_to

if TYPE_CHECKING:
    from gradcheck.config.settings import Settings
    from gradcheck.report.outputs import View

app = typer.Typer(
    rich_markup_mode=None,  # rich help would double the time that --help takes
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A linter and profiler for the training health of PyTorch models.",
)

Words = Annotated[
    list[str] | None,
    typer.Option(metavar="RULES", help="Rules to run: names, codes, families (GRAD) or ALL.", autocompletion=rule_words),
]
Ignored = Annotated[list[str] | None, typer.Option(metavar="RULES", help="Rules to leave out.", autocompletion=rule_words)]
Extended = Annotated[
    list[str] | None, typer.Option(metavar="RULES", help="Rules to run besides the selected ones.", autocompletion=rule_words)
]
RulePaths = Annotated[list[str] | None, typer.Option("--rules", metavar="PATH", help="A file or folder with rules of your own.")]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FORMAT[:PATH]",
        help="full (default), json, sarif, junit, ..., to stdout or a file. May be repeated.",
        autocompletion=format_name,
    ),
]
FailOn = Annotated[str | None, typer.Option(metavar="error|warning|info|never", help="Exit 1 for findings at this level or above [error].")]
Open = Annotated[bool, typer.Option("--open", help="Open the report in the web browser; see --output html:PATH.")]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit 0 also when there are findings.")]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Do not fail when a run could only be judged in part.")]
MaxWarnings = Annotated[int | None, typer.Option(metavar="N", help="Exit 1 when there are more warnings than this.")]
BaselineFile = Annotated[str | None, typer.Option(metavar="FILE", help="Findings that are known [.gradcheck-baseline.json].")]
NoBaseline = Annotated[bool, typer.Option("--no-baseline", help="Show known findings too.")]
AllowStale = Annotated[bool, typer.Option("--allow-stale", help="Do not fail for entries of the baseline whose findings are gone.")]
Fast = Annotated[bool, typer.Option("--fast", help="A few steps only: what the first steps show, without training experiments.")]
Profiled = Annotated[bool, typer.Option("--profile", help="Show what each layer costs.")]
ShowPassed = Annotated[bool, typer.Option("--show-passed", help="Show the state of every rule, and what was found by convention.")]
ShowAll = Annotated[bool, typer.Option("--show-all", help="Show all layers in the profile.")]
ConfigLines = Annotated[list[str] | None, typer.Option(metavar="FILE|'KEY = VALUE'", help="A configuration file, or a setting over it.")]
Isolated = Annotated[bool, typer.Option("--isolated", help="Ignore configuration files.")]
ColorChoice = Annotated[str, typer.Option(metavar="auto|always|never", help="Colours.")]


@app.callback(invoke_without_command=True)
def gradcheck(show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if show_version:
        version()


class _WithScriptArguments(typer.core.TyperCommand):
    """What stands after `--` belongs to the script that is scanned."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.obj, args = tuple(args[place + 1 :]), args[:place]
        return super().parse_args(ctx, args)


SCAN_EPILOG = "Example: gradcheck scan --steps 50 -- accelerate launch train.py --epochs 3"


@app.command(cls=_WithScriptArguments, epilog=SCAN_EPILOG)
def scan(
    ctx: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="model.py, model.py:name, package.module:name, train.py [-- ARGUMENTS], nb.ipynb."),
    ] = None,
    arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument for the model's class or factory.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Data: .pt, .safetensors, .npz, .csv, images, or FILE.py:name.")] = None,
    val_data: Annotated[str | None, typer.Option(metavar="FILE", help="Validation data.")] = None,
    input: Annotated[list[str] | None, typer.Option(metavar="TYPE[SHAPE]", help="A synthetic input: float32[32,3,224,224].")] = None,
    loss: Annotated[str | None, typer.Option(help="cross_entropy, mse_loss, ..., or FILE.py:name.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw, ..., or FILE.py:name.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the probe training [100], or of the script.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; findings are what most of them show [1].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps [auto].")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bf16, fp16, float64.")] = None,
    budget: Annotated[float | None, typer.Option(metavar="SECONDS", help="For all of it, a script's own run included.")] = None,
    script: Annotated[bool, typer.Option("--script", help="Run TARGET as a training script; else its text tells.")] = False,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Run the script in a mirror of its folder, which keeps its output.")] = False,
    quiet_script: Annotated[bool, typer.Option("--quiet-script", help="Drop what the script prints.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Try remedies too, and show the edits; `gradcheck fix --write` writes them.")] = False,
    unsafe_fixes: commands_fix.Unsafe = False,
    fast: Fast = False,
    select: Words = None,
    ignore: Ignored = None,
    extend_select: Extended = None,
    rules: RulePaths = None,
    fail_on: FailOn = None,
    exit_zero: ExitZero = False,
    allow_partial: AllowPartial = False,
    max_warnings: MaxWarnings = None,
    baseline: BaselineFile = None,
    no_baseline: NoBaseline = False,
    allow_stale: AllowStale = False,
    output: Outputs = None,
    open_page: Open = False,
    profile: Profiled = False,
    show_passed: ShowPassed = False,
    show_all: ShowAll = False,
    config: ConfigLines = None,
    isolated: Isolated = False,
    color: ColorChoice = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Measure models and judge them. Without TARGET: the targets of [tool.gradcheck.targets].

    A training script or notebook is run until it has taken some steps; model, loss, data and optimizer are captured from the run. So is
    a command behind `--` where no TARGET stands before it: -- python -m package.train ARGUMENTS, -- torchrun ... train.py ARGUMENTS.
    """
    with exits(color):
        from gradcheck.capture.spec import ScriptSpec
        from gradcheck.cli.gate import baseline_path, exit_code, load_known, without_known
        from gradcheck.cli.jobs import arguments_of, flag_names, jobs_of, refuse_flags, scan_all, scan_command, with_scripts
        from gradcheck.cli.program import Orders, run_of
        from gradcheck.report.outputs import parse_outputs, write_outputs

        chosen = {"select": _split(select), "ignore": _split(ignore), "extend_select": _split(extend_select), "rule_paths": rules}
        limits = {"steps": steps, "seeds": seeds, "budget": budget, "device": device, "dtype": dtype}
        limits |= {"fast": fast or None, "profile": profile or None, "allow_partial": allow_partial or None}
        settings = settings_of(config, isolated, **chosen, **limits, fail_on=fail_on, max_warnings=max_warnings)
        outputs = parse_outputs(output or (), opened=open_page)
        flags = {"data": data, "val_data": val_data, "inputs": tuple(input or ()), "loss": loss, "optimizer": optimizer, "lr": lr}
        known = load_known(None if no_baseline else baseline_path(settings, baseline, isolated=isolated))
        run = ScriptSpec("", ctx.obj or (), steps, settings.budget, sandbox, quiet_script)
        speaks = rank.reports()  # of the processes of torchrun one does
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
        write_outputs(reports, outputs, _view(settings, color, profile, show_passed, show_all))
        if open_page:
            from gradcheck.report.browser import open_reports

            open_reports(reports, outputs)
        sys.exit(FAILED if failed else exit_code(reports, settings, exit_zero=exit_zero, allow_stale=allow_stale))


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN.json", help="A saved run: what `scan --output json:RUN.json` wrote.")],
    format: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="Short for --output FORMAT.", autocompletion=format_name)
    ] = None,
    select: Words = None,
    ignore: Ignored = None,
    extend_select: Extended = None,
    rules: RulePaths = None,
    fail_on: FailOn = None,
    exit_zero: ExitZero = False,
    allow_partial: AllowPartial = False,
    max_warnings: MaxWarnings = None,
    baseline: BaselineFile = None,
    no_baseline: NoBaseline = False,
    allow_stale: AllowStale = False,
    output: Outputs = None,
    open_page: Open = False,
    profile: Profiled = False,
    show_passed: ShowPassed = False,
    show_all: ShowAll = False,
    config: ConfigLines = None,
    isolated: Isolated = False,
    color: ColorChoice = "auto",
) -> None:
    """Judge a saved run again, with other rules or limits, and show it. Nothing is run."""
    with exits(color):
        from pathlib import Path

        from gradcheck.cli.gate import baseline_path, exit_code, load_known, without_known
        from gradcheck.judge.judge import judge_again
        from gradcheck.report.json import load_all
        from gradcheck.report.outputs import parse_outputs, write_outputs

        chosen = {"select": _split(select), "ignore": _split(ignore), "extend_select": _split(extend_select), "rule_paths": rules}
        gates = {"fail_on": fail_on, "max_warnings": max_warnings, "allow_partial": allow_partial or None}
        settings = settings_of(config, isolated, **chosen, **gates)
        outputs = parse_outputs([*([format] if format else []), *(output or ())], opened=open_page)
        known = load_known(None if no_baseline else baseline_path(settings, baseline, isolated=isolated))
        reports = without_known([judge_again(saved, settings) for saved in load_all(Path(run))], settings, known)
        write_outputs(reports, outputs, _view(settings, color, profile, show_passed, show_all))
        if open_page:
            from gradcheck.report.browser import open_reports

            open_reports(reports, outputs)
        sys.exit(exit_code(reports, settings, exit_zero=exit_zero, allow_stale=allow_stale))


@app.command()
def rule(
    name: Annotated[
        str, typer.Argument(metavar="NAME|CODE", help="A rule, such as vanishing-gradient or GRAD001.", autocompletion=rule_name)
    ],
    output_format: Annotated[str, typer.Option(metavar="text|json")] = "text",
    rules: RulePaths = None,
) -> None:
    """Explain a rule: what it finds, how it measures, its limits and their sources, when to ignore it."""
    with exits():
        explain(name, output_format, rules)


@app.command("rules")
def list_rules(
    output_format: Annotated[str, typer.Option(metavar="text|json")] = "text",
    select: Words = None,
    rules: RulePaths = None,
) -> None:
    """List the rules: code, name, highest severity, summary."""
    with exits():
        import json

        from gradcheck.judge.registry import load_rules
        from gradcheck.judge.select import select as selected
        from gradcheck.report.rule_page import rule_facts, rule_list

        every = load_rules(settings_of(None, False, rule_paths=rules).rule_paths)
        listed = selected(every, _split(select) or ["ALL"])
        print(rule_list(listed) if wants_text(output_format) else json.dumps([rule_facts(r) for r in listed], indent=2))


def _view(settings: Settings, color: str, profile: bool, show_passed: bool, show_all: bool) -> View:
    from gradcheck.report.outputs import View

    return View(_color(color), profile, show_passed, show_all, fail_on=settings.fail_on, allow_partial=settings.allow_partial)


def _split(words: list[str] | None) -> list[str] | None:
    """`--select GRAD,INIT --select dead-units` as one list."""
    return None if words is None else [w.strip() for word in words for w in word.split(",") if w.strip()]


def _color(color: str) -> Any:
    from gradcheck.errors import ConfigError

    if color not in ("auto", "always", "never"):
        raise ConfigError(f"--color must be auto, always or never; got {color!r}")
    return color


add_to(app)
watch.add_to(app)
commands_fix.add_to(app)
trial.add_to(app)
