"""The command `fix`: scan, treat a copy, prove the cure; show the edits, or write them."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from gradcheck import interrupts
from gradcheck.cli import guard
from gradcheck.cli.exit import exits
from gradcheck.cli.groups import ConfigOptions, GateOptions, OutputOptions, PartOptions, RuleOptions, ScriptOptions, with_groups
from gradcheck.cli.jobs import named
from gradcheck.cli.options import Color, Device, Dtype, Quiet, Target, UnsafeFixes, checked_color

if TYPE_CHECKING:
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.config.settings import Settings
    from gradcheck.loading.spec import TargetSpec
    from gradcheck.repair.fixed import Fixed
    from gradcheck.repair.options import RepairOptions
    from gradcheck.types.report import Report

EPILOG = (
    "Exit 0: nothing at --fail-on is left, and there is nothing to write. 1: findings are left, or edits would be made. "
    "2: could not run, or could judge only in part."
)

SCANS = 60.0  # seconds that a scan takes by default, which the budget does not count

TrainingSteps = Annotated[int | None, typer.Option("--steps", help="Steps of each short training. [default: 100]")]
Seeds = Annotated[int, typer.Option(help="Pairs of trainings that prove a cure.")]
Budget = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="For treating and proving, after the scan. [default: 180 to 300, as the steps take]")
]


@with_groups
def fix(
    ctx: typer.Context,
    *,
    target: Target = None,
    write: Annotated[bool, typer.Option("--write", help="Write the edits, once a scan of an edited copy has shown a cure.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print the edits as one patch, and nothing else, to stdout.")] = False,
    unsafe_fixes: UnsafeFixes = False,
    allow_dirty: Annotated[bool, typer.Option("--allow-dirty", help="Write although git has uncommitted changes.")] = False,
    steps: TrainingSteps = None,
    seeds: Seeds = 3,
    budget: Budget = None,
    parts: PartOptions,
    device: Device = None,
    dtype: Dtype = None,
    scripts: ScriptOptions,
    rules: RuleOptions,
    gate: GateOptions,
    outputs: OutputOptions,
    config: ConfigOptions,
    color: Color = "auto",
    quiet: Quiet = False,
) -> None:
    """Find a cure for a model, prove it on copies, and show or write the edits of the source.

    Remedies are tried on a copy of the model, measured again, and trained against the untreated twin on the same batches.
    """
    started = time.perf_counter()
    with exits(color):
        from gradcheck.cli.jobs import arguments_of, jobs_of, with_scripts
        from gradcheck.errors import ConfigError
        from gradcheck.repair.options import options_of
        from gradcheck.report.formatting import View
        from gradcheck.report.outputs import write_outputs

        target = named(target, ctx)
        if write and diff:
            raise ConfigError("--write and --diff exclude each other", hint="--diff shows what --write would do")
        settings = config.settings(**rules.choice, device=device, dtype=dtype, **gate.flags)
        options = options_of(unsafe_fixes, steps, seeds, budget)
        places = () if diff and not outputs.output else outputs.parsed()
        jobs = jobs_of([target], arguments_of(parts.arg or []), parts.flags, settings, None)
        own = {"--device": device, "--dtype": dtype}
        (job,) = with_scripts(jobs, scripts.script or ctx.obj is not None, scripts.spec(ctx.obj), own)
        guard.budget(budget and budget + SCANS * (1 + write))
        treated = treat(*job, options, quiet)
        for fixed in treated:  # treating and proving are part of the wait
            fixed.report = replace(fixed.report, seconds=time.perf_counter() - started)
        reports = [f.report for f in treated]
        after = _written(treated, job[0], ctx, target, allow_dirty) if write and not any(f.interrupted for f in treated) else None
        if diff:
            print("".join(f.source.diff for f in treated if f.source is not None), end="")
        view = View(checked_color(color), written=after is not None, fail_on=settings.fail_on, allow_partial=settings.allow_partial)
        write_outputs(reports, places, view)
        outputs.open(reports, places)
        _say_tail(treated, write, diff)
        sys.exit(_code(treated, after, settings, gate.exit_zero))


def treat(spec: TargetSpec | ScriptSpec, settings: Settings, options: RepairOptions, quiet: bool) -> list[Fixed]:
    """stdout carries results only: what the user's code prints goes to stderr."""
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.errors import TargetError
    from gradcheck.repair.script import fix_script
    from gradcheck.repair.story import fix_target
    from gradcheck.report.progress_bar import progress_bar

    if isinstance(spec, ScriptSpec) and spec.kind == "notebook":
        hint = f"export it with `jupyter nbconvert --to script {spec.path}` and fix the script; `gradcheck scan` names cell and line"
        raise TargetError(f"{spec.path} is a notebook, and gradcheck edits none", hint=hint)
    with progress_bar(spec.target, quiet=quiet) as progress, redirect_stdout(sys.stderr):
        if isinstance(spec, ScriptSpec):
            return fix_script(spec, settings, options, progress)
        return [fix_target(spec, settings, options, progress)]


def treat_all(jobs: list[tuple[TargetSpec | ScriptSpec, Settings]], unsafe: bool, quiet: bool) -> tuple[list[Report], bool]:
    """What `gradcheck scan --fix` shows: reports with what was tried, and whether a target failed, which none did that returned."""
    from gradcheck.repair.options import options_of

    return [fixed.report for job in jobs for fixed in treat(*job, options_of(unsafe, None, 3, None), quiet)], False


# Options of `fix` that `scan` does not have, or that mean something else there.
OWN = "write diff unsafe_fixes allow_dirty steps seeds budget target output open_page exit_zero fail_on color quiet".split()


def scan_words(ctx: typer.Context, target: str) -> list[str]:
    """The arguments of a `gradcheck scan` of the same target with the same options."""
    words = [target]
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name or "")
        if parameter.name in OWN or not value:
            continue
        name = parameter.opts[0]
        words += [name] if value is True else [x for v in (value if isinstance(value, (list, tuple)) else [value]) for x in (name, str(v))]
    return [*words, "--", *ctx.obj] if ctx.obj else words


def _written(
    treated: list[Fixed], spec: TargetSpec | ScriptSpec, ctx: typer.Context, target: str, allow_dirty: bool
) -> list[Report] | None:
    """A scan of the edited files, which are written then; None when there was nothing to write."""
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.repair.edits import promises, scan_and_write

    source = next((f.source for f in treated if f.source is not None and f.source.drafts), None)
    if source is None:
        return None
    promised = []
    for fixed in treated:
        cured = fixed.report.proof.cured if fixed.report.proof is not None else ()
        kept = [o.prescription for o in fixed.outcomes if o.status == "kept"]
        promised.append((fixed.report, promises(source, cured, kept)))
    apart = ["--sandbox"] if isinstance(spec, ScriptSpec) and not spec.sandbox else []
    return scan_and_write(source, promised, [*apart, *scan_words(ctx, target)], allow_dirty)


def _say_tail(treated: list[Fixed], written: bool, only_patch: bool) -> None:
    """What is to be done next; after a bare patch the summary too. All of it on stderr."""
    from gradcheck.report.outcomes import tail

    for fixed in treated:
        if only_patch:
            print(tail(fixed.report), file=sys.stderr)
        if fixed.why_no_source:
            print(f"no edits: {fixed.why_no_source}", file=sys.stderr)
        elif not fixed.outcomes:
            which = f" for {fixed.report.target}" if len(treated) > 1 else ""
            print(f"fix: nothing was tried{which}: {_why_nothing(fixed.report)}", file=sys.stderr)
        elif written and (fixed.source is None or not fixed.source.drafts) and fixed is treated[-1]:
            print(f"fix: nothing was written: {tail(fixed.report)}", file=sys.stderr)
        if written and fixed.source is not None and fixed.source.done:
            print("wrote " + ", ".join(change.path for change in fixed.source.done), file=sys.stderr)
        if fixed.interrupted:
            print("interrupted: this is what was found by then", file=sys.stderr)


def _why_nothing(report: Report) -> str:
    if any(f.severity != "info" for f in report.findings):
        return "there is no remedy for what was found"
    return "only errors and warnings are treated" if report.findings else "nothing was found"


def _code(treated: list[Fixed], after: list[Report] | None, settings: Settings, exit_zero: bool) -> int:
    from gradcheck.cli.gate import code

    if any(f.interrupted for f in treated):
        return interrupts.exit_code()
    left = after if after is not None else [f.report for f in treated]
    edits = after is None and any(f.source is not None and f.source.drafts for f in treated)
    found = edits or any(r.exit_code(settings.fail_on, allow_partial=True) for r in left)
    return code(found, left, settings, exit_zero=exit_zero)
