"""Logs in plain text: CSV, JSON lines, a list of records, and what Transformers and Lightning make of them."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.logs.table import STEPS, Table, as_number, flat, plain

TRANSFORMERS = "trainer_state.json of Transformers"
LIGHTNING = "metrics.csv of Lightning"
# A name of one word or several, and its number: `step:  1  loss:  8.22`, `iter 0: loss 10.9, took 3ms`, `Step [100/600]`, `'loss': '2.3'`.
_NAMED = re.compile(
    r"""([A-Za-z_][\w/.-]*(?:[ ][A-Za-z_][\w/.-]*){0,2})['"]?\s*[:=]?\s*[\['"]?\s*"""
    r"""(?:\b[A-Za-z_][\w.]*\(\[?)?"""  # `tensor(2.3, ...)`, `np.float64(2.3)`
    r"""([-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|(?<![A-Za-z])[-+]?(?i:inf|infinity|nan))(?![\w.%]|:\d)"""
)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
FEWEST = 2  # lines with a loss that make the output of a program a log


def read(path: Path) -> Table:
    """Raises ConfigError for what is neither a table nor records."""
    data = path.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")  # as PowerShell redirects
    text = data.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    state = _whole(text)
    if isinstance(state, dict) and isinstance(state.get("log_history"), list):
        return _records(TRANSFORMERS, state["log_history"], path)
    if columns := lists_in(state):
        return _records("lists in JSON", [dict(zip(columns, row, strict=True)) for row in zip_longest(*columns.values())], path)
    if isinstance(state, list):
        return _records("records in JSON", state, path)
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].lstrip().startswith("{"):
        found = [row for line in lines if isinstance(row := _whole(line), dict)]  # the last line may be cut off
        return _records("JSON lines", found, path)
    said = list(_said(lines))
    return _records("the output of a program", said, path) if len(said) >= FEWEST else _csv(text, path)


def lists_in(state: Any) -> dict[str, list[Any]]:
    """Columns of numbers, as the history of Keras holds them."""
    found = flat(state) if isinstance(state, dict) and "schema_version" not in state else ()
    return {name: v for name, v in found if isinstance(v, list) and v and all(as_number(x) is not None for x in v)}


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
    lines = [line for line in text.splitlines() if line.strip()]
    remarks = list(takewhile(lambda line: line.lstrip().startswith("#"), lines))
    lines = lines[len(remarks) :]
    if remarks and lines and not re.search("[a-df-zA-DF-Z]", lines[0]):  # the last remark names the columns, as NumPy's savetxt writes
        lines = [remarks[-1].lstrip("# "), *lines]
    delimiter = max(",;\t|", key=lines[0].count) if lines else ","
    if lines and delimiter not in lines[0]:  # columns between blanks
        lines, delimiter = [" ".join(line.split()) for line in lines], " "
    rows = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    table = Table(LIGHTNING if path.name == "metrics.csv" else "CSV")
    named = ({str(k): str(v) for k, v in row.items() if k is not None and v not in (None, "")} for row in rows)
    table.add_rows({k: v if delimiter == "," else v.replace(",", ".") for k, v in row.items()} for row in named)  # 2,31
    if not table.columns:
        hint = "gradcheck reads trainer_state.json, metrics.csv, event files, runs of W&B and MLflow, CSV and JSON lines"
        raise ConfigError(f"{path} is not a log that can be read: no column holds numbers", hint=hint)
    return table
