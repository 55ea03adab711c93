"""Which rules run: selectors are a rule's name or code, a family ("GRAD"), or "ALL"."""

from collections.abc import Iterable, Sequence

from gradcheck.config.settings import Settings
from gradcheck.errors import ConfigError, closest
from gradcheck.judge.registry import find_rule, load_rules
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Need, Rule


def chosen(settings: Settings) -> tuple[Rule, ...]:
    """The rules that these settings ask for. Raises ConfigError for anything in them that names no rule or limit."""
    rules = load_rules(settings.rule_paths)
    check_rule_settings(rules, settings)
    return select(rules, settings.select, settings.ignore, settings.extend_select)


def for_these(rules: Iterable[Rule], measurements: Iterable[Measurement]) -> tuple[Rule, ...]:
    """The rules that apply to the kind of run: rules of logs to the log of a finished run, the others to everything else.

    A run that is watched has both.
    """
    of_log, watched = any(m.log is not None for m in measurements), any(m.course is not None for m in measurements)
    return tuple(r for r in rules if ("log" in r.needs) == of_log or ("log" in r.wants if of_log else watched))


def needs(rules: Iterable[Rule]) -> frozenset[Need]:
    """What has to be measured for these rules."""
    return frozenset(need for rule in rules for need in (*rule.needs, *rule.wants))


def select(
    rules: Sequence[Rule], select: Iterable[str] = ("ALL",), ignore: Iterable[str] = (), extend_select: Iterable[str] = ()
) -> tuple[Rule, ...]:
    """Rules that `select` and `extend_select` name and `ignore` does not.

    The narrower selector wins (rule over family over ALL), and of equally narrow ones `ignore`:
    `select=["ALL"], ignore=["GRAD"], extend_select=["GRAD001"]` runs GRAD001 and no other rule of its family.
    """
    wanted: dict[str, int] = {}
    unwanted: dict[str, int] = {}
    for words, narrowness in (((*select, *extend_select), wanted), (tuple(ignore), unwanted)):
        for word in words:
            codes, width = matching(word, rules)
            for code in codes:
                narrowness[code] = max(narrowness.get(code, 0), width)
    return tuple(r for r in rules if wanted.get(r.code, 0) > unwanted.get(r.code, 0))


def matching(word: str, rules: Sequence[Rule]) -> tuple[frozenset[str], int]:
    """Codes of the rules that a selector names, and its narrowness: 1 ALL, 2 family, 3 rule."""
    if word.upper() == "ALL":
        return frozenset(r.code for r in rules), 1
    family = frozenset(r.code for r in rules if r.family == word.upper())
    if family:
        return family, 2
    rule = find_rule(word, rules)
    if rule is None:
        raise unknown(word, rules)
    return frozenset([rule.code]), 3


def check_rule_settings(rules: Sequence[Rule], settings: Settings) -> None:
    """Raises ConfigError for settings of rules or limits that do not exist."""
    for word, own in settings.rules.items():
        rule = find_rule(word, rules)
        if rule is None:
            raise unknown(word, rules, f" in [tool.gradcheck.rules.{word}]")
        for limit in own.limits:
            if limit not in rule.limits:
                raise _unknown_limit(rule, limit.replace("_", "-"))
    for glob, words in settings.per_layer_ignores.items():
        for word in words:
            try:
                matching(word, rules)
            except ConfigError as e:
                raise ConfigError(f'{e.message} in per-layer-ignores of "{glob}"', hint=e.hint) from None


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean "..."? ` or nothing."""
    close = closest(word, known)
    return f'did you mean "{close}"? ' if close else ""


def _unknown_limit(rule: Rule, limit: str) -> ConfigError:
    known = [name.replace("_", "-") for name in rule.limits]
    limits = "it has " + ", ".join(known) if known else "it has no limits to set"
    return ConfigError(f"{rule.name} ({rule.code}) has no limit {limit!r}", hint=suggestion(limit, known) + limits)


def unknown(word: str, rules: Sequence[Rule], place: str = "") -> ConfigError:
    known = [w for r in rules for w in (r.name, r.code, r.family)]
    return ConfigError(f"unknown rule or family {word!r}{place}", hint=suggestion(word, known) + "`gradcheck rules` lists them all")
