"""Logs in plain text: CSV, JSON lines, a list of records, and what Transformers and Lightning make of them."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.logs.table import STEPS, Table, plain

TRANSFORMERS = "trainer_state.json of Transformers"
LIGHTNING = "metrics.csv of Lightning"
# A name of one word or several, and its number: `step:  1  loss:  8.22`, `iter 0: loss 10.9, took 3ms`, `Step [100/600]`, `'loss': '2.3'`.
_NAMED = re.compile(
    r"""([A-Za-z_][\w/.-]*(?:[ ][A-Za-z_][\w/.-]*){0,2})['"]?\s*[:=]?\s*[\['"]?\s*"""
    r"""([-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf|nan)(?![\w.]|:\d)"""
)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
FEWEST = 2  # lines with a loss that make the output of a program a log


def read(path: Path) -> Table:
    """Raises ConfigError for what is neither a table nor records."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    state = _whole(text)
    if isinstance(state, dict) and isinstance(state.get("log_history"), list):
        return _records(TRANSFORMERS, state["log_history"], path)
    if isinstance(state, list):
        return _records("records in JSON", state, path)
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].lstrip().startswith("{"):
        found = [row for line in lines if isinstance(row := _whole(line), dict)]  # the last line may be cut off
        return _records("JSON lines", found, path)
    said = list(_said(lines))
    return _records("the output of a program", said, path) if len(said) >= FEWEST else _csv(text, path)


def _said(lines: list[str]) -> Iterator[dict[str, str]]:
    """What lines of a program's output that name a loss say in numbers."""
    for line in lines:
        row = {}
        for name, value in _NAMED.findall(_COLOURS.sub("", line)) if "loss" in line.lower() else ():
            last = name.split()[-1]
            row[last if plain(last) in STEPS else name] = value.replace(",", "")
        if any("loss" in plain(name).split("_") for name in row):
            yield row


def _whole(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _records(kind: str, rows: list[Any], path: Path) -> Table:
    table = Table(kind)
    table.add_rows(row for row in rows if isinstance(row, Mapping))
    if not table.columns:
        raise ConfigError(f"{path} holds no numbers", hint="a log has a record a step: a loss, and the step")
    return table


def _csv(text: str, path: Path) -> Table:
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096], delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    rows = csv.DictReader(io.StringIO(text), dialect=dialect)
    table = Table(LIGHTNING if path.name == "metrics.csv" else "CSV")
    table.add_rows({str(k): v for k, v in row.items() if k is not None and v not in (None, "")} for row in rows)
    if not table.columns:
        hint = "gradcheck reads trainer_state.json, metrics.csv, event files, runs of W&B and MLflow, CSV and JSON lines"
        raise ConfigError(f"{path} is not a log that can be read: no column holds numbers", hint=hint)
    return table
