"""The folder of saved runs in the working directory: `gradcheck watch` and the servers for agents and editors keep them there."""

import re
from collections.abc import Iterator
from pathlib import Path

from gradcheck.errors import SavedRunError
from gradcheck.types.report import Report

FOLDER = Path(".gradcheck")
BEFORE = ".before.json"  # ending of the name of the run before the present one
# How a file of `--output json:PATH` begins: one report, or several.
BEGINNINGS = (b'{"target":', b'{"schema_version":')


def folder(root: Path = Path()) -> Path:
    """The folder, made where there is none, with a .gitignore that keeps it out of the repository."""
    place = root / FOLDER
    place.mkdir(exist_ok=True)
    if not (ignored := place / ".gitignore").exists():
        ignored.write_text("*\n", encoding="utf-8")
    return place


def run_of(target: str, root: Path = Path()) -> Path:
    """The file for the last run of a target."""
    return folder(root) / (re.sub(r"[^\w.-]+", "_", target).strip("_.") + ".json")


def kept_before(run: Path) -> Path | None:
    """Makes room for a new run: the present one becomes the previous one. None when there is none."""
    if not run.exists():
        return None
    return run.replace(run.with_name(run.name.removesuffix(".json") + BEFORE))


def saved_runs(root: Path) -> Iterator[tuple[Path, Report]]:
    """The reports that are saved in a folder and in its folder of saved runs, the newest first."""
    from gradcheck.saved_run import load_all

    files = [path for place in (root, root / FOLDER) for path in place.glob("*.json") if not path.name.endswith(BEFORE)]
    for path in sorted(filter(_looks_saved, files), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            yield from ((path, report) for report in load_all(path))
        except SavedRunError:  # of a newer gradcheck, or half written
            continue


def _looks_saved(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(BEGINNINGS[1])).startswith(BEGINNINGS)
    except OSError:
        return False
