"""Runs that MLflow keeps on this machine: a folder with a file for each metric, or its database, of which the newest run is read."""

import sqlite3
from contextlib import closing
from pathlib import Path

from gradcheck.errors import ConfigError
from gradcheck.logs.table import Table, as_number

FORMAT = "a run of MLflow"
# Those that were not deleted, first those with a loss, and of these the newest.
_RUNS = """select run_uuid from runs where lifecycle_stage is not 'deleted' and run_uuid in (select run_uuid from metrics)
order by run_uuid in (select run_uuid from metrics where key like '%loss%') desc, start_time desc"""


def read(folder: Path) -> Table:
    table = Table(FORMAT)
    for path in sorted(p for p in (folder / "metrics").rglob("*") if p.is_file()):
        name = path.relative_to(folder / "metrics").as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            words = line.split()
            if len(words) >= 2:
                step = as_number(words[2]) if len(words) > 2 else None
                table.add(name, float(number) if step is None else step, words[1])
    for path in (folder / "params").glob("*") if (folder / "params").is_dir() else ():
        table.settings[path.name] = path.read_text(encoding="utf-8", errors="replace").strip()
    return table


def read_database(path: Path) -> Table:
    """Raises ConfigError for a database that is not MLflow's."""
    table = Table(FORMAT)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            found = [name for (name,) in base.execute(_RUNS)] or [""]
            if len(found) > 1:
                table.format = f"{FORMAT}, the newest of {len(found)}"
            rows = base.execute("select key, step, value, is_nan from metrics where run_uuid = ? order by step, timestamp", found[:1])
            for key, step, value, is_nan in rows:
                table.add(key, float(step), float("nan") if is_nan else value)
            table.settings |= dict(base.execute("select key, value from params where run_uuid = ?", found[:1]))
    except sqlite3.Error as error:
        raise ConfigError(f"{path} is not a database of MLflow: {error}", hint="name mlflow.db, or the folder of a run") from error
    return table
