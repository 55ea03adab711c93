"""The command `bisect`: where two programs that should train alike part."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gradcheck.cli.exit import FAILED, FOUND, exits
from gradcheck.cli.options import Output, Quiet

if TYPE_CHECKING:
    from gradcheck.types.bisection import Bisection

FORMATS = ("text", "json", "html")
EPILOG = "A and B are a script, a command in quotes, or a recording that --save wrote; or two runs that `scan` or `watch` saved."


def bisect(
    a: Annotated[str, typer.Argument(metavar="A", help="train.py, 'python train.py --lr 1', 'torchrun ... train.py', or a recording.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="The same, of the program that is compared. None with --save.")] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of each program that are recorded.")] = 20,
    repeats: Annotated[int, typer.Option(metavar="N", min=2, help="Runs of A, which tell its own noise; a third if they differ.")] = 2,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed Python, NumPy and torch before the programs begin.")] = None,
    tolerance: Annotated[float, typer.Option(metavar="PART", help="Relative distance that counts as none, beside A's noise.")] = 0.0,
    save: Annotated[str | None, typer.Option(metavar="PATH", help="Write the recording of A, to compare with later.")] = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Find the first step, layer and tensor at which two runs of one training part: before and after a change, eager and compiled.

    Both programs run unchanged, for some steps, in processes of their own. Exit code: 0 when B agrees with A within A's own noise,
    1 when they part, 2 when that could not be determined.
    """
    with exits():
        from gradcheck.bisect import recording
        from gradcheck.bisect.saved import are_saved, bisected_runs
        from gradcheck.bisect.story import BisectOrders, bisected, recorded
        from gradcheck.errors import ConfigError
        from gradcheck.files import place

        if not tolerance >= 0:
            raise ConfigError(f"--tolerance must be 0 or more; got {tolerance}", hint="--tolerance 0.1")
        if b is None and save is None:
            raise ConfigError("bisect needs two programs", hint="gradcheck bisect before.py after.py")
        outputs = _outputs(output)
        orders = BisectOrders(steps, repeats, tolerance, seed)

        def tell(what: str) -> None:
            if not quiet:
                print(f"gradcheck: {what}", file=sys.stderr, flush=True)

        if b is not None and save is None and are_saved(a, b):
            _end(bisected_runs(a, b, orders), outputs)
        base = recorded(a, orders, repeats, tell)
        if save is not None:
            recording.save(base.runs, place(save))
            tell(f"recording saved to {save}")
        if b is None:
            sys.exit(0)
        found = bisected(base, head := recorded(b, orders, 1, tell), orders)
        for side in (base, head):
            if side.output:
                print(f"{side.text} ended with an error:\n{side.output}", file=sys.stderr)
        _end(found, outputs)


def _outputs(output: list[str] | None) -> list[tuple[str, str]]:
    from gradcheck.errors import ConfigError

    found = [tuple(word.partition(":")[::2]) for word in output or ["text"]]
    for name, _ in found:
        if name not in FORMATS:
            raise ConfigError(f"a bisection is not shown as {name!r}", hint=f"formats: {', '.join(FORMATS)}")
    return found  # type: ignore[return-value]


def _end(found: Bisection, outputs: list[tuple[str, str]]) -> NoReturn:
    """Shows it, and leaves with its exit code."""
    from pathlib import Path

    from gradcheck.files import write_text
    from gradcheck.report.bisection import as_json, page, text

    renderers = {"text": text, "json": as_json, "html": page}
    for name, path in outputs:
        shown = renderers[name](found)
        if path:
            write_text(Path(path), shown)
        else:
            print(shown, end="")
    if found.verdict == "parted":
        sys.exit(FOUND)
    sys.exit(FAILED if found.failed or found.verdict == "not-comparable" else 0)
