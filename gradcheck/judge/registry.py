"""Where rules come from: gradcheck's own families, installed packs (entry points), and files of the project."""

import functools
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from gradcheck.errors import ConfigError
from gradcheck.judge.gate_rules import failed_assertion, stale_baseline
from gradcheck.judge.suppress import unused_ignore
from gradcheck.types.rule import Rule

ENTRY_POINTS = "gradcheck.rules"  # group; a value is a module with RULES, or a callable that returns rules
CODE = re.compile(r"[A-Z]+[0-9]{3}")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def load_rules(paths: Iterable[str | Path] = (), *, packs: bool = True) -> tuple[Rule, ...]:
    """All rules, in the order of families and codes: built-in ones, installed packs, then files.

    `paths`: files, or folders of files, that hold `RULES`. `packs=False` leaves installed packs out.
    Raises ConfigError, naming the pack, when one cannot be loaded, and for a code or name that occurs twice.
    """
    rules = list(builtin_rules())
    if packs:
        rules += _installed_rules()
    for path in paths:
        rules += _rules_of_path(Path(path))
    _check_unique(rules)
    return tuple(rules)


@functools.cache
def builtin_rules() -> tuple[Rule, ...]:
    """gradcheck's own rules."""
    return (*map(_rule_of_file, _rule_files()), unused_ignore, failed_assertion, stale_baseline)


def _rule_files() -> Iterator[str]:
    """Modules that hold a rule of their own name."""
    for family in importlib.import_module("gradcheck.rules").FAMILIES:
        yield from (f"gradcheck.rules.{family}.{name}" for name in importlib.import_module(f"gradcheck.rules.{family}").RULES)


def _rule_of_file(module: str) -> Rule:
    found: Rule = getattr(importlib.import_module(module), module.rpartition(".")[2])
    return found


def find_rule(word: str, rules: Sequence[Rule]) -> Rule | None:
    """The rule with this name or code, in any case."""
    return next((r for r in rules if word.lower() in (r.name, r.code.lower())), None)


@functools.cache
def _installed_rules() -> tuple[Rule, ...]:
    from importlib.metadata import entry_points

    found: list[Rule] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        origin = point.dist.name if point.dist else point.value
        where = f"rule pack {origin!r} (entry point {point.name!r})"
        try:
            loaded = point.load()
        except Exception as e:
            raise ConfigError(f"{where} could not be loaded: {_words(e)}", hint="update or uninstall it") from e
        found += _rules_of(loaded, where, origin)
    return tuple(found)


def _rules_of_path(path: Path) -> list[Rule]:
    if not path.exists():
        raise ConfigError(f"no such rule file or folder: {path}", hint="check --rules and `rule-paths`")
    if path.is_file():
        return _rules_of_file(path)
    files = [f for f in sorted(path.glob("*.py")) if f.name != "__init__.py" and "RULES" in f.read_text("utf-8", "replace")]
    if not files:
        raise ConfigError(f"no rules in folder {path}", hint="a rule file ends in .py and lists its rules in RULES")
    return [rule for file in files for rule in _rules_of_file(file)]


def _rules_of_file(path: Path) -> list[Rule]:
    where = f"rule file {path}"
    module = sys.modules[f"rules of {path}"] = ModuleType(f"rules of {path}")  # dataclasses look their module up
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # so that no bytecode is left in the user's folder
    except Exception as e:
        raise ConfigError(f"{where} could not be loaded: {_words(e)}", hint="correct it, or leave it out") from e
    return _rules_of(module, where, str(path))


def _rules_of(loaded: object, where: str, origin: str) -> list[Rule]:
    """Rules of a loaded pack: an object with RULES, or a callable that returns rules; each marked with its origin."""
    from dataclasses import replace

    given = getattr(loaded, "RULES", None)
    if given is None and callable(loaded):
        try:
            given = loaded()
        except Exception as e:
            raise ConfigError(f"{where} could not be loaded: {_words(e)}", hint="update or uninstall it") from e
    if given is None:
        raise ConfigError(f"{where} has no RULES", hint="list its rules in a tuple RULES at the top level of the module")
    rules = tuple(given) if isinstance(given, Iterable) else ()
    if not isinstance(given, Iterable) or not all(isinstance(r, Rule) for r in rules):
        raise ConfigError(f"{where}: RULES holds something that is not a rule", hint="make rules with `gradcheck.types.rule.rule`")
    return [replace(_well_named(r, where), origin=origin) for r in rules]


def _well_named(rule: Rule, where: str) -> Rule:
    if not NAME.fullmatch(rule.name):
        raise ConfigError(f"{where}: rule name {rule.name!r} is not kebab-case", hint='name it like "dead-units"')
    if not CODE.fullmatch(rule.code):
        raise ConfigError(f"{where}: rule code {rule.code!r} is not a family and three digits", hint='use a code like "ACME001"')
    return rule


def _check_unique(rules: Iterable[Rule]) -> None:
    seen: dict[str, Rule] = {}
    for rule in rules:
        for word in (rule.code, rule.name):
            if word in seen:
                origins = f"{seen[word].origin} and {rule.origin}"
                raise ConfigError(f"two rules are called {word!r}, from {origins}", hint="rename one of them, or leave one pack out")
            seen[word] = rule


def _words(error: BaseException) -> str:
    place = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}{place}"
