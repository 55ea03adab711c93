"""Logs in plain text: CSV, JSON lines, a list of records, and what Transformers and Lightning make of them."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.logs.table import Table

TRANSFORMERS = "trainer_state.json of Transformers"
LIGHTNING = "metrics.csv of Lightning"


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
    return _csv(text, path)


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
