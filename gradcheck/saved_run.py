"""Reports as JSON: the saved run. NaN and infinities are the strings "NaN", "Infinity", "-Infinity"; floats have 6 digits."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gradcheck import files
from gradcheck.errors import SavedRunError
from gradcheck.files import write_text as write_text  # of reports that write themselves
from gradcheck.types.report import SCHEMA_VERSION, Report
from gradcheck.types.trial import TrialResult

if TYPE_CHECKING:
    from pydantic import TypeAdapter

DIGITS = 6
T = TypeVar("T")


def dumps(report: Report | TrialResult) -> str:
    """The report, or the result of a trial, as one JSON object; `schema_version` says its shape."""
    return _text(as_plain(report))


def dumps_all(reports: Sequence[Report]) -> str:
    """One report as `dumps` gives it; several as {"schema_version": ..., "reports": [...]}."""
    if len(reports) == 1:
        return dumps(reports[0])
    return _text({"schema_version": SCHEMA_VERSION, "reports": [as_plain(r) for r in reports]})


def line(value: Any, **more: str) -> str:
    """A dataclass as one line of JSON, with further members first."""
    return _text(more | as_plain(value))


def render(reports: Sequence[Report], view: object = None) -> str:
    """The `json` format, which is a saved run."""
    return dumps_all(reports)


def load(path: Path) -> Report:
    """The report saved in a file. Raises SavedRunError when it is not one, holds several, or is of a newer schema."""
    reports = load_all(path)
    if len(reports) != 1:
        raise SavedRunError(f"{path} holds {len(reports)} reports, not one", hint="`gradcheck report` shows them all")
    return reports[0]


def load_all(path: Path) -> tuple[Report, ...]:
    """The reports saved in a file by a scan of one or several targets. Raises SavedRunError as `load` does."""
    try:
        data = files.parsed(path)
    except OSError as e:
        hint = "save a run with `gradcheck scan TARGET --output json:run.json`"
        raise SavedRunError(f"cannot read {path}: {e.strerror}", hint=hint) from e
    except ValueError as e:  # UnicodeDecodeError and JSONDecodeError
        raise SavedRunError(f"{path} is not JSON: {e}", hint="a saved run comes from `--output json:PATH`") from e
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _wrong_shape(path, "no schema_version of 1 or above")
    if version > SCHEMA_VERSION:
        newer = f"{path} has schema version {version}; this gradcheck reads up to {SCHEMA_VERSION}"
        raise SavedRunError(newer, hint="update gradcheck, or scan again")
    several = data.get("reports", [data])
    if not isinstance(several, list) or not several:
        raise _wrong_shape(path, "no reports")
    return tuple(_report(path, d) for d in several)


def _report(path: Path, data: object) -> Report:
    try:
        report = shaped(Report, data)
    except ValueError as e:
        raise _wrong_shape(path, str(e)) from e
    if not report.measurements:
        raise _wrong_shape(path, "no measurements")
    return report


def _wrong_shape(path: Path, what: str) -> SavedRunError:
    hint = "a saved run comes from `--output json:PATH`; of another program, name the log that has a value a step, not its summary"
    return SavedRunError(f"{path} is not a saved run of gradcheck ({what})", hint=hint)


def shaped(kind: type[T], data: object) -> T:
    """What JSON holds as a dataclass, those inside it included. Raises ValueError, which says what is wrong where."""
    from pydantic import ValidationError

    try:
        plain: Any = kind
        found: T = _adapter(plain).validate_python(data)
        return found
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}") from e


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _text(plain: object) -> str:
    return json.dumps(plain, allow_nan=False, separators=(",", ":")) + "\n"


def as_plain(value: Any) -> Any:
    """Dataclasses, tuples and floats as what JSON has."""
    if isinstance(value, float):
        return _digits(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {name: as_plain(getattr(value, name)) for name in _names(type(value))}
        return own | {"coverage": as_plain(value.coverage)} if isinstance(value, Report) else own  # to be read, not to be loaded
    if isinstance(value, dict):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_plain(v) for v in value]
    return value


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


def _digits(value: float) -> float | str:
    if math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
