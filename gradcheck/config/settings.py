"""Settings: from `[tool.gradcheck]` of the nearest pyproject.toml (or gradcheck.toml), `--config`, and flags.

    [tool.gradcheck]
    select = ["GRAD", "dead-units"]
    fail-on = "error"
    [tool.gradcheck.rules.vanishing-gradient]
    severity = "warning"
    warning-slope = 0.2                              # a limit of that rule
    [tool.gradcheck.per-layer-ignores]
    "encoder.embed*" = ["learning-rate-too-low"]
    [tool.gradcheck.targets.encoder]
    model = "src/model.py:Encoder"

Flags override the file; `extend-select` and `ignore` add to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gradcheck import files
from gradcheck.config.keys import Assertion, RuleSettings, TargetSettings, parse
from gradcheck.config.toml_file import Source, find_file, inline, read_file
from gradcheck.types.finding import Severity

__all__ = ["EVERY", "OVERHEAD", "RuleSettings", "Settings", "TargetSettings", "load", "settings_from"]

EVERY = 50  # steps of a watched run of which one is measured, at most
OVERHEAD = 0.03  # of a run's time that watching may take


@dataclass(frozen=True)
class Settings:
    """All that can be configured, with defaults."""

    select: tuple[str, ...] = ("ALL",)
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    fail_on: Severity | Literal["never"] = "error"
    max_warnings: int | None = None
    allow_partial: bool = False  # a run that was judged in part does not fail
    steps: int = 100  # optimizer steps of the probe training
    seeds: int = 1  # how many: 0, 1, ...
    budget: float | None = None  # seconds for the whole scan
    device: str = "auto"
    dtype: str | None = None
    fast: bool = False  # a few steps only: no probe training, no experiments, no checks beside it
    offload: bool = False  # what is not trained at the moment is set aside: on the host, or in a file
    profile: bool = False
    rule_paths: tuple[Path, ...] = ()
    rules: Mapping[str, RuleSettings] = field(default_factory=dict)  # by name or code, as the user wrote it
    per_layer_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # glob -> selectors
    targets: Mapping[str, TargetSettings] = field(default_factory=dict)
    baseline: Path | None = None  # file of the findings that are known
    baseline_tolerance: float = 0.5  # part of the stored value by which a known finding may get worse
    assertions: tuple[Assertion, ...] = ()

    def rule(self, name: str, code: str) -> RuleSettings:
        """Settings of the rule with this name and code."""
        mine = [own for word, own in self.rules.items() if word.lower() in (name, code.lower())]
        severity = next((own.severity for own in mine if own.severity), None)
        return RuleSettings(severity, {k: v for own in mine for k, v in own.limits.items()})

    def with_flags(self, **flags: Any) -> Settings:
        """These settings with command-line values over them; None leaves a setting as it is. Raises ConfigError.

        `ignore`, `extend_select` and `rule_paths` add to the settings. A selector that is both ignored here and
        selected by a flag is no longer ignored.
        """
        given = {k.replace("_", "-"): v for k, v in flags.items() if v is not None and v != []}
        new = parse(given, Source("the command line"), as_flags=True)
        selected = {*new.get("select", ()), *new.get("extend_select", ())}
        new["ignore"] = (*(w for w in self.ignore if w not in selected), *new.get("ignore", ()))
        for adding in ("extend_select", "rule_paths"):
            new[adding] = (*getattr(self, adding), *new.get(adding, ()))
        return replace(self, **new)


def load(start: Path | None = None, *, config: Iterable[str] = (), isolated: bool = False) -> Settings:
    """Settings of the nearest configuration file at or above `start` (default: the working directory).

    `config`: files to use instead, and TOML lines ("fail-on = 'warning'") that go over the file. `isolated` looks for no file.
    Raises ConfigError with file, line, key and a suggestion.
    """
    lines = [c for c in config if _is_toml(c)]
    files = [Path(c) for c in config if not _is_toml(c)]
    if not files and not isolated:
        found = find_file((start or Path.cwd()).resolve())
        files = [found] if found else []
    values: dict[str, Any] = {}
    for path in files:
        table, source = read_file(path)
        values = _over(values, parse(table, source))
    for line in lines:
        table, source = inline(line)
        values = _over(values, parse(table, source))
    return Settings(**values)


def settings_from(config: Settings | Mapping[str, Any] | str | Path | None) -> Settings:
    """Settings of the Python API's `config` argument: a file, a mapping with the keys of `[tool.gradcheck]`, or None.

    None looks for no file: from Python, only what is passed counts.
    """
    if isinstance(config, Settings):
        return config
    if config is None:
        return Settings()
    if isinstance(config, Mapping):
        return Settings(**parse(config, Source("config")))
    return load(config=[str(config)])


def _is_toml(text: str) -> bool:
    return "=" in text and not files.is_file(Path(text))


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two parsed tables, one over the other; mappings (rules, targets) are merged by key, rules also by limit."""
    merged = below | above
    for key in ("per_layer_ignores", "targets"):
        if key in below and key in above:
            merged[key] = {**below[key], **above[key]}
    if "assertions" in below and "assertions" in above:
        own = {a.name for a in above["assertions"]}
        merged["assertions"] = (*(a for a in below["assertions"] if a.name not in own), *above["assertions"])
    if "rules" in below and "rules" in above:
        merged["rules"] = {**below["rules"], **above["rules"]}
        for word in set(below["rules"]) & set(above["rules"]):
            old, new = below["rules"][word], above["rules"][word]
            merged["rules"][word] = RuleSettings(new.severity or old.severity, {**old.limits, **new.limits})
    return merged
