"""A rule's page and the list of rules, as text or JSON-able values. Imports nothing heavy: `gradcheck rule` is quick."""

from collections.abc import Sequence
from typing import Any

from gradcheck.types.rule import Rule


def rule_page(rule: Rule) -> str:
    """The page in Markdown: name, severity, the docstring, and a table of the limits."""
    facts = f"{rule.name} ({rule.code})\n\nSeverity: up to {rule.up_to}. Measured for it: {', '.join(rule.needs) or 'nothing'}."
    if rule.origin != "gradcheck":
        facts += f" From: {rule.origin}."
    parts = [f"# {facts}", rule.page]
    if rule.limits:
        parts.append(f"## Settings\nIn `[tool.gradcheck.rules.{rule.name}]`:\n\n{_limits(rule)}")
    return "\n\n".join(parts)


def _limits(rule: Rule) -> str:
    rows = [("limit", "value", "unit", "source")]
    rows += [(name.replace("_", "-"), f"{x.value:g}", x.unit, x.source) for name, x in rule.limits.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join((*(c.ljust(w) for c, w in zip(row[:3], widths, strict=True)), row[3])).rstrip() for row in rows)


def rule_facts(rule: Rule) -> dict[str, Any]:
    """What `gradcheck rule --output json` prints."""
    return {
        "code": rule.code,
        "name": rule.name,
        "family": rule.family,
        "up_to": rule.up_to,
        "summary": rule.summary,
        "needs": list(rule.needs),
        "limits": {name: {"value": x.value, "unit": x.unit, "source": x.source} for name, x in rule.limits.items()},
        "explains": list(rule.explains),
        "origin": rule.origin,
        "page": rule.page,
    }


def rule_list(rules: Sequence[Rule]) -> str:
    """A line per rule: code, name, highest severity, summary."""
    width = max((len(r.name) for r in rules), default=0)
    return "\n".join(f"{r.code:<9} {r.name:<{width}}  {r.up_to:<7}  {r.summary}" for r in rules)
