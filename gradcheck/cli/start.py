"""The first minute: `gradcheck` alone says what it would scan, `gradcheck demo` scans a faulty sample."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradcheck.cli.exit import exits
from gradcheck.cli.options import Color, Quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_NOTEBOOKS = 40  # of a folder that are looked into
MOST_SHOWN = 5
FIRST = "vanishing-gradient"
FOLDER = "gradcheck-demo"


def proposals(folder: Path) -> list[str]:
    """Commands that would scan what is in a folder, with what they would scan."""
    from gradcheck.capture.detect import scripts_in
    from gradcheck.config.settings import load

    targets = list(load(folder).targets)
    found = [f"gradcheck scan    # the configured targets: {', '.join(targets)}"] if targets else []
    notebooks = [path for path in sorted(folder.glob("*.ipynb"))[:MOST_NOTEBOOKS] if "torch" in path.read_text("utf-8", "replace")]
    names = [path.name for path in (*scripts_in(folder), *notebooks)]
    found += [f"gradcheck scan {shlex.quote(name)}" for name in names[:MOST_SHOWN]]
    return [*found, f"... and {len(names) - MOST_SHOWN} more"] if len(names) > MOST_SHOWN else found


def alone(context: typer.Context) -> None:
    """`gradcheck` without a command: what it would scan here, else the help."""
    with exits():
        found = proposals(Path.cwd())
    if not found:
        print(context.get_help())
        print("\nNothing here trains when it is run. To see a scan of a faulty sample: gradcheck demo")
        return
    several = len(found) > 1
    print("This folder trains:" if several else "This folder trains; to scan it:", end="\n\n")
    for line in found:
        print(f"  {line}")
    print("\nA script is run for its first steps, in its own folder; its model, data, loss and optimizer are taken from the run.")
    print("All commands: gradcheck --help")


def samples() -> Mapping[str, str]:
    """File name -> source of the faulty samples, models and scripts: files of a checkout, which setup.py packs into one."""
    from importlib.resources import files

    folder = Path(str(files("gradcheck.samples")))
    packed = folder / "samples.json.bz2"
    if packed.exists():
        import bz2

        texts: dict[str, str] = json.loads(bz2.decompress(packed.read_bytes()))
        return texts
    every = [path for kind in ("models", "scripts") for path in sorted((folder / kind).glob("*.py"))]
    return {path.name: path.read_text(encoding="utf-8") for path in every}


def demo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A sample; --list names them.")] = FIRST,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Where the sample is written.")] = FOLDER,
    only_list: Annotated[bool, typer.Option("--list", help="List the samples.")] = False,
    color: Color = "auto",
    quiet: Quiet = False,
) -> None:
    """Write a faulty sample into a folder and scan it: a first finding, and what to do with it."""
    with exits(color):
        from gradcheck.cli.groups import OutputOptions, ViewOptions
        from gradcheck.cli.jobs import scan_configured
        from gradcheck.config.settings import Settings
        from gradcheck.files import place

        every = samples()
        if only_list:
            print("\n".join(f"{_name(file):<32}{_title(text)}" for file, text in every.items()))
            return
        file = written(name, place(to), every)
        print(f"{file} is a faulty sample: {_title(every[file.name])}\n$ gradcheck scan {shlex.quote(str(file))}\n")
        settings = Settings()
        reports, _ = scan_configured([str(file)], settings, quiet)
        ViewOptions().write(reports, OutputOptions().parsed(), settings, color)
        print(f"\nNext: gradcheck fix {shlex.quote(str(file))}   # tries remedies, proves them, and shows the edit")
        print("      gradcheck demo --list                # the other samples")
        print("      gradcheck                            # in your project: what it would scan there")


def written(name: str, folder: Path, every: Mapping[str, str]) -> Path:
    """The sample, copied into the folder. Raises ConfigError for an unknown name, and for a file that is there and differs."""
    from gradcheck.errors import ConfigError, closest

    named = name.removesuffix(".py").replace("-", "_") + ".py"
    text = every.get(named)
    if text is None:
        near = closest(name, [_name(file) for file in every])
        raise ConfigError(f"there is no sample {name!r}", hint=f"gradcheck demo {near}" if near else "gradcheck demo --list")
    file = folder / named
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{file} has been changed", hint=f"gradcheck scan {file}, or another folder: --to FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}", hint="give another folder with --to FOLDER") from error
    return file


def _name(file: str) -> str:
    return file.removesuffix(".py").replace("_", "-")


def _title(source: str) -> str:
    return source.partition('"""')[2].partition("\n")[0].strip()
