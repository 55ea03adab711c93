"""The keys of the configuration: each has a reader that gets (value, place) and returns the setting or raises ConfigError."""

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gradcheck.config.toml_file import Source
from gradcheck.errors import ConfigError, closest
from gradcheck.types.finding import SEVERITIES, Severity
from gradcheck.types.location import Location

FAIL_ON = (*SEVERITIES, "never")
FIELDS = {"assert": "assertions"}  # keys that cannot be the name of a field
SIDES = {"min": "minimum", "max": "maximum"}
AGGREGATES = ("median", "optimistic", "pessimistic")


@dataclass(frozen=True)
class RuleSettings:
    """The user's settings of one rule."""

    severity: Severity | None = None
    limits: Mapping[str, float] = field(default_factory=dict)  # limit name, in snake case -> value


@dataclass(frozen=True)
class TargetSettings:
    """A target of `[tool.gradcheck.targets]`. Strings mean what the flags of `gradcheck scan` mean."""

    target: str
    args: Mapping[str, str] = field(default_factory=dict)
    data: str | None = None
    val_data: str | None = None
    input: tuple[str, ...] = ()
    loss: str | None = None
    optimizer: str | None = None
    lr: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Assertion:
    """A limit of `[tool.gradcheck.assert]` on a number of the run."""

    name: str  # "stat:loss.final", "score:gradients"
    severity: Severity
    minimum: float | None = None
    maximum: float | None = None
    aggregate: Literal["median", "optimistic", "pessimistic"] = "median"  # over the seeds
    location: Location | None = None


@dataclass(frozen=True)
class Place:
    """A key in a source, for error messages."""

    source: Source
    table: tuple[str, ...]
    key: str

    def wrong(self, what: str, value: object, hint: str = "without the key its default holds") -> ConfigError:
        name = self.key if not self.table else ".".join((*self.table, self.key))
        return ConfigError(f"{name} {what}; got {reprlib.repr(value)}", hint=hint, location=self.location)

    @property
    def location(self) -> Location | None:
        return self.source.find(self.table, self.key)


Reader = Callable[[Any, Place], Any]


def parse(table: Mapping[str, Any], source: Source, *, as_flags: bool = False) -> dict[str, Any]:
    """Field values of Settings from a TOML table. Raises ConfigError for unknown keys and wrong types."""
    readers = dict(READERS)
    if as_flags:
        readers["profile"] = _boolean
    return _read(table, readers, source, ())


def _read(table: Mapping[str, Any], readers: Mapping[str, Reader], source: Source, at: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in readers:
            raise _unknown_key(key, readers, source, at)
        values[FIELDS.get(name, name.replace("-", "_"))] = readers[name](value, Place(source, at, key))
    return values


def _unknown_key(key: str, known: Iterable[str], source: Source, at: tuple[str, ...]) -> ConfigError:
    close = closest(key.replace("_", "-"), known)
    hint = f'did you mean "{close}"?' if close else "known keys: " + ", ".join(known)
    return ConfigError(f"unknown key {key!r} in {source.table(at)}", hint=hint, location=source.find(at, key))


def _text(value: object, place: Place) -> str:
    if not isinstance(value, str):
        raise place.wrong("must be a string", value)
    return value


def _texts(value: object, place: Place) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise place.wrong("must be a list of strings", value)
    return tuple(value)


def _text_or_texts(value: object, place: Place) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else _texts(value, place)


def _boolean(value: object, place: Place) -> bool:
    if not isinstance(value, bool):
        raise place.wrong("must be true or false", value)
    return value


def _positive(value: object, place: Place) -> int:
    return _count(value, place, least=1)


def _count(value: object, place: Place, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise place.wrong(f"must be a whole number of at least {least}", value)
    return value


def _number(value: object, place: Place) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        raise place.wrong("must be a number", value)
    return float(value)


def _above_zero(value: object, place: Place) -> float:
    number = _number(value, place)
    if number <= 0:
        raise place.wrong("must be above 0", value)
    return number


def _severity(value: object, place: Place) -> str:
    if value not in SEVERITIES:
        raise place.wrong("must be error, warning or info", value, "to switch a rule off, list it in `ignore`")
    return str(value)


def _fail_on(value: object, place: Place) -> str:
    if value not in FAIL_ON:
        raise place.wrong("must be error, warning, info or never", value)
    return str(value)


def _table(value: object, place: Place) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise place.wrong("must be a table", value)
    return value


def _paths(value: object, place: Place) -> tuple[Path, ...]:
    return tuple(place.source.folder / p for p in _texts(value, place))


def _rule_table(value: object, place: Place) -> dict[str, RuleSettings]:
    tables = {word: _table(own, Place(place.source, ("rules",), word)) for word, own in _table(value, place).items()}
    return {word: _rule(table, place.source, word) for word, table in tables.items()}


def _rule(table: Mapping[str, Any], source: Source, word: str) -> RuleSettings:
    at = ("rules", word)
    severity: Any = _severity(table["severity"], Place(source, at, "severity")) if "severity" in table else None
    limits = {k.replace("-", "_"): _number(v, Place(source, at, k)) for k, v in table.items() if k != "severity"}
    return RuleSettings(severity, limits)


def _ignore_table(value: object, place: Place) -> dict[str, tuple[str, ...]]:
    return {glob: _texts(words, Place(place.source, (place.key,), glob)) for glob, words in _table(value, place).items()}


def _target_table(value: object, place: Place) -> dict[str, TargetSettings]:
    targets = {}
    for name, own in _table(value, place).items():
        at = (place.key, name)
        values = _read(_table(own, Place(place.source, (place.key,), name)), TARGET_READERS, place.source, at)
        model = values.pop("model", None)
        if (model is None) == ("target" not in values):
            problem = "has no `model`" if model is None else "has both `model` and `target`"
            hint = 'model = "src/model.py:Net"'
            raise ConfigError(f"{place.source.table(at)} {problem}", hint=hint, location=place.source.find((place.key,), name))
        targets[name] = TargetSettings(**({"target": model} | values))
    return targets


def _reference(value: object, place: Place) -> str:
    """ "src/model.py:Net" or "data.pt", relative to the file that says so; "package.module:Net" and names stay."""
    text = _text(value, place)
    path, colon, name = text.rpartition(":") if ".py:" in text else (text, "", "")
    if not (place.source.folder / path).exists():
        return text
    return f"{place.source.relative(path)}{colon}{name}"


def _arguments(value: object, place: Place) -> dict[str, str]:
    return {k: v if isinstance(v, str) else repr(v) for k, v in _table(value, place).items()}


def _baseline(value: object, place: Place) -> Path:
    return place.source.folder / _text(value, place)


def _assertions(value: object, place: Place) -> tuple[Assertion, ...]:
    return tuple(_assertion(name, own, Place(place.source, (place.key,), name)) for name, own in _table(value, place).items())


def _assertion(name: str, value: object, place: Place) -> Assertion:
    """`{ max = 1.8 }` or `["warning", { max = 1.8 }]`."""
    from gradcheck.analysis.statistics import known_names

    kind = name.partition(":")[0]
    if kind not in ("stat", "score") or (kind == "stat" and name not in known_names()):
        close = closest(name, known_names())
        hint = f'did you mean "{close}"?' if close else "known numbers: " + ", ".join(known_names())
        raise ConfigError(f"unknown number {name!r} in {place.source.table(place.table)}", hint=hint, location=place.location)
    severity, own = value if isinstance(value, (list, tuple)) and len(value) == 2 else ("error", value)
    if not isinstance(own, Mapping) or not own.keys() & SIDES.keys() or not own.keys() <= {*SIDES, "aggregate"}:
        raise place.wrong("must be { min = ..., max = ... }, or [severity, { ... }]", value, '"stat:loss.final" = { max = 1.8 }')
    aggregate = own.get("aggregate", "median")
    if aggregate not in AGGREGATES:
        raise place.wrong("has an unknown aggregate", aggregate, f"known: {', '.join(AGGREGATES)}")
    sides: dict[str, Any] = {SIDES[side]: _number(own[side], place) for side in SIDES if side in own}
    level: Any = _severity(severity, place)
    return Assertion(name, level, **sides, aggregate=aggregate, location=place.location)


READERS: Mapping[str, Reader] = {
    "select": _texts,
    "ignore": _texts,
    "extend-select": _texts,
    "fail-on": _fail_on,
    "max-warnings": _count,
    "allow-partial": _boolean,
    "steps": _positive,
    "seeds": _positive,
    "budget": _above_zero,
    "fast": _boolean,
    "offload": _boolean,
    "device": _text,
    "dtype": _text,
    "rule-paths": _paths,
    "baseline": _baseline,
    "baseline-tolerance": _above_zero,
    "assert": _assertions,
    "rules": _rule_table,
    "per-layer-ignores": _ignore_table,
    "targets": _target_table,
}

TARGET_READERS: Mapping[str, Reader] = {
    "model": _reference,
    "target": _reference,
    "args": _arguments,
    "data": _reference,
    "val-data": _reference,
    "input": _text_or_texts,
    "loss": _reference,
    "optimizer": _reference,
    "lr": _above_zero,
    "steps": _positive,
}
