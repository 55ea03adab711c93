"""What the shell completes: names of rules and of formats. Imports are inside functions, since the commands import this module."""

from __future__ import annotations


def rule_words(incomplete: str) -> list[str]:
    """Names of rules and families that begin with the last word of a comma-separated list."""
    from gradcheck.judge.registry import builtin_rules

    before, comma, word = incomplete.rpartition(",")
    words = [*(rule.name for rule in builtin_rules()), *dict.fromkeys(rule.family for rule in builtin_rules())]
    return [f"{before}{comma}{each}" for each in words if each.startswith(word)]


def rule_name(incomplete: str) -> list[str]:
    """Names of rules, or codes where the word begins with a capital letter."""
    from gradcheck.judge.registry import builtin_rules

    words = (rule.code if incomplete[:1].isupper() else rule.name for rule in builtin_rules())
    return [word for word in words if word.startswith(incomplete)]


def format_name(incomplete: str) -> list[str]:
    from gradcheck.report.outputs import FORMATS

    return [name for name in FORMATS if name.startswith(incomplete)]
