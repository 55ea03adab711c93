"""Runs that MLflow keeps on this machine: a folder with a file for each metric, or its database, of which the newest run is read."""

import sqlite3
from contextlib import closing
from pathlib import Path

from gradcheck.errors import ConfigError
from gradcheck.logs.table import Table, as_number

FORMAT = "a run of MLflow"


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
            newest = "(select run_uuid from runs where run_uuid in (select run_uuid from metrics) order by start_time desc limit 1)"
            rows = base.execute(f"select key, step, value, is_nan from metrics where run_uuid = {newest} order by step, timestamp")
            for key, step, value, is_nan in rows:
                table.add(key, float(step), float("nan") if is_nan else value)
            table.settings |= dict(base.execute(f"select key, value from params where run_uuid = {newest}"))
    except sqlite3.Error as error:
        raise ConfigError(f"{path} is not a database of MLflow: {error}", hint="name mlflow.db, or the folder of a run") from error
    return table
