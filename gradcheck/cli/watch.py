"""The command `watch`: a program is run to its end, followed on the screen, and reported on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradcheck import interrupts
from gradcheck.cli.exit import FOUND, exits
from gradcheck.cli.groups import ConfigOptions, GateOptions, RuleOptions, with_groups
from gradcheck.cli.options import Color, MaxWarnings, Output

if TYPE_CHECKING:
    from pathlib import Path

    from gradcheck.config.settings import Settings
    from gradcheck.live.parent import ProgramEnding

SAVED = ".gradcheck/last.json"


@with_groups
def watch(
    ctx: typer.Context,
    *,
    overhead: Annotated[str, typer.Option(metavar="SHARE", help="Of the run's time that watching may take.")] = "3%",
    every: Annotated[int | None, typer.Option(metavar="N", min=1, help="Measure every N steps, whatever it costs.")] = None,
    stop_on: Annotated[
        str | None, typer.Option(metavar="error|warning", help="End the program at a finding of this level or above.")
    ] = None,
    on: Annotated[
        list[str] | None, typer.Option(metavar="LEVEL=CMD", help="Run a command for each finding: error=CMD, warning=CMD. May be repeated.")
    ] = None,
    notify: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Send findings to a webhook: Slack's, Discord's, or any that takes JSON.")
    ] = None,
    keep_spikes: Annotated[
        int, typer.Option(metavar="N", min=0, help="Keep the batches of so many spikes, for `gradcheck scan --replay`.")
    ] = 0,
    attach: Annotated[
        str | None, typer.Option(metavar="RUN", help="Show the board of a run that is going on: its saved run, or its folder.")
    ] = None,
    save: Annotated[str, typer.Option(metavar="PATH", help="Where the run is saved, for `gradcheck report` and `gradcheck diff`.")] = SAVED,
    no_save: Annotated[bool, typer.Option("--no-save", help="Save nothing.")] = False,
    rules: RuleOptions,
    gate: GateOptions,
    max_warnings: MaxWarnings = None,
    output: Output = None,
    config: ConfigOptions,
    color: Color = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No board, no lines: the report only.")] = False,
) -> None:
    """Run a training program to its end, and follow it: -- python train.py ARGUMENTS, or -- torchrun ... train.py ARGUMENTS.

    The program runs as it would without gradcheck. Exit code: 130 after Ctrl-C, 128 + the signal after another; 1 when --stop-on ended
    it; the program's own, when that is not 0; else as for scan.
    """
    with exits(color):
        from pathlib import Path

        from gradcheck.errors import ConfigError
        from gradcheck.live.acting import Actor, command_of, webhook
        from gradcheck.live.command import check_interpreter, program_of
        from gradcheck.live.parent import Orders, run
        from gradcheck.report.outputs import parse_outputs

        if attach is not None:
            sys.exit(_attach(attach, ctx.obj, color, quiet))
        settings = config.settings(**rules.choice, **gate.flags, max_warnings=max_warnings)
        outputs = parse_outputs(output or ())
        if stop_on not in (None, "error", "warning"):
            raise ConfigError(f"--stop-on must be error or warning; got {stop_on!r}", hint="--stop-on error")
        program = program_of(ctx.obj or ())
        check_interpreter(program)
        place = None if no_save else _place(save)
        chosen = {k: v for k, v in rules.choice.items() if v}
        record = str(place.absolute()) if place is not None else ""
        spikes = str((place or Path(SAVED)).absolute().parent / "spikes") if keep_spikes else ""
        orders = Orders(every, _share(overhead), stop_on, keep_spikes, spikes, record, config.config or [], config.isolated, chosen)
        actor = Actor([*(command_of(text, program.name) for text in on or ()), *(webhook(url, program.name) for url in notify or ())])
        ending = run(program, orders, actor, color=color, quiet=quiet)
        _tell(ending, settings, outputs, place, color)
        sys.exit(_code(ending, settings, gate.exit_zero))


def _share(text: str) -> float:
    """`3%` or `0.03`. Raises ConfigError for anything else."""
    from gradcheck.errors import ConfigError

    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if rest or not 0 < share <= 1 or (share == 1 and not percent):
        raise ConfigError(f"--overhead must be a share of the run's time; got {text!r}", hint="--overhead 3%, or --overhead 0.03")
    return share


def _place(save: str) -> Path:
    from gradcheck.errors import ConfigError
    from gradcheck.files import is_folder, place

    path = place(save)
    if is_folder(path) or (save != SAVED and not is_folder(path.parent)):
        raise ConfigError(f"--save {save}: no file can be written there", hint="--save run.json")
    return path


def _attach(run: str, program: object, color: str, quiet: bool) -> int:
    from gradcheck.errors import ConfigError
    from gradcheck.live.attach import attach, run_at

    if program is not None:
        raise ConfigError("--attach looks at a run that is going on, and starts none", hint=f"gradcheck watch --attach {run}")
    try:
        return attach(run_at(run), color=color, quiet=quiet)
    except KeyboardInterrupt:
        print("gradcheck: the run goes on", file=sys.stderr)
        return 130


def _tell(ending: ProgramEnding, settings: Settings, outputs: Any, place: Path | None, color: str) -> None:
    from gradcheck.errors import TargetError
    from gradcheck.report.formatting import View
    from gradcheck.report.outputs import write_outputs

    report = ending.report
    if ending.failure:
        print(f"gradcheck: watching ended early by a fault of its own: {ending.failure}; the program was left alone", file=sys.stderr)
    if ending.unsaved:
        print(f"gradcheck: the run was not saved: {ending.unsaved}; --save PATH names another file, --no-save none", file=sys.stderr)
    if report is None:
        if ending.interrupted or ending.code or ending.elsewhere:
            return
        if ending.failure:
            raise TargetError("there is no report of the run", hint="please report it with the line above")
        hint = "the program is to train with an optimizer of torch.optim; from Python: with gradcheck.watch(model, optimizer)"
        raise TargetError("no training was seen", hint=hint)
    if place is not None and not ending.unsaved:
        print(f"gradcheck: run saved to {place}", file=sys.stderr)
    write_outputs([report], outputs, View(color, fail_on=settings.fail_on, allow_partial=settings.allow_partial))  # type: ignore[arg-type]


def _code(ending: ProgramEnding, settings: Settings, exit_zero: bool) -> int:
    from gradcheck.cli.gate import exit_code

    if ending.interrupted:
        return interrupts.exit_code()
    if ending.stopped:
        return FOUND
    if ending.code:
        return ending.code
    return exit_code([ending.report] if ending.report is not None else [], settings, exit_zero=exit_zero)
