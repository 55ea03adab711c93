"""The baseline file: JSON with an entry a line, sorted, so that changes merge and diffs read well."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradcheck import files
from gradcheck.errors import ConfigError
from gradcheck.files import write_text
from gradcheck.judge.baseline import KnownFinding
from gradcheck.types.finding import SEVERITIES

NAME = ".gradcheck-baseline.json"
VERSION = 1
COMPARISONS = ("<", ">", "<=", ">=", "=", "")


def write(path: Path, baseline: Sequence[KnownFinding]) -> None:
    """Writes the file whole. Raises SavedRunError when it cannot be written."""
    write_text(path, text(baseline), hint="give another path with --baseline")


def text(baseline: Sequence[KnownFinding]) -> str:
    rows = ",\n".join(f"    {_line(entry)}" for entry in baseline)
    listed = f"[\n{rows}\n  ]" if rows else "[]"
    return f'{{\n  "schema_version": {VERSION},\n  "findings": {listed}\n}}\n'


def _line(entry: KnownFinding) -> str:
    members: dict[str, str | float] = {"target": entry.target, "finding": entry.key, "severity": entry.severity}
    if entry.value is not None:
        value = float(f"{entry.value:.4g}") if math.isfinite(entry.value) else str(entry.value)
        members |= {"quantity": entry.quantity, "value": value, "comparison": entry.comparison}
    return json.dumps(members, ensure_ascii=False)


def read(path: Path) -> tuple[KnownFinding, ...]:
    """The entries. Raises ConfigError when the file cannot be read or is not a baseline."""
    try:
        data = files.parsed(path)
    except OSError as e:
        raise ConfigError(f"cannot read the baseline {path}: {e.strerror}", hint="`gradcheck baseline create` makes one") from e
    except ValueError as e:
        raise _wrong(path, f"it is not JSON: {e}") from e
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1 or not isinstance(data.get("findings"), list):
        raise _wrong(path, "it has no schema_version and findings")
    if version > VERSION:
        raise ConfigError(f"{path} has schema version {version}; this gradcheck reads up to {VERSION}", hint="update gradcheck")
    return tuple(_entry(path, i, row) for i, row in enumerate(data["findings"], start=1))


def _entry(path: Path, nth: int, row: object) -> KnownFinding:
    if not isinstance(row, dict):
        raise _wrong(path, f"entry {nth} is not an object")
    texts = [row.get("target"), row.get("finding"), row.get("quantity", ""), row.get("comparison", "")]
    if not all(isinstance(t, str) for t in texts) or row.get("severity") not in SEVERITIES or texts[3] not in COMPARISONS:
        raise _wrong(path, f"entry {nth} lacks a target, a finding or a severity")
    try:
        value = None if row.get("value") is None else float(row["value"])
    except (TypeError, ValueError) as e:
        raise _wrong(path, f"the value of entry {nth} is not a number") from e
    return KnownFinding(str(texts[0]), str(texts[1]), row["severity"], str(texts[2]), value, str(texts[3]))


def _wrong(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path} is not a baseline of gradcheck ({what})", hint="`gradcheck baseline update` writes it again")


def lines(path: Path, baseline: Sequence[KnownFinding]) -> Mapping[KnownFinding, int]:
    """Entry -> the line of the file that holds it, if each is on a line of its own."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(files.text(path).splitlines(), start=1):
        numbers.setdefault(line.strip().rstrip(","), number)
    return {entry: numbers[line] for entry in baseline if (line := _line(entry)) in numbers}
