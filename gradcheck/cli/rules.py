"""The commands `rule` and `rules`: what gradcheck looks for."""

from typing import Annotated

import typer

from gradcheck.cli.exit import exits, explain, wants_text
from gradcheck.cli.options import RuleName, RulePaths, Select, TextOrJson, settings_of, split

Whole = Annotated[bool, typer.Option("--all", help="The page of every rule, not a line each.")]


def rule(name: RuleName, output_format: TextOrJson = "text", rules: RulePaths = None) -> None:
    """Explain a rule: what it finds, how it measures, its limits and their sources, when to ignore it."""
    with exits():
        explain(name, output_format, rules)


def list_rules(output_format: TextOrJson = "text", select: Select = None, rules: RulePaths = None, whole: Whole = False) -> None:
    """List the rules: code, name, highest severity, summary. As JSON each has its page."""
    with exits():
        import json

        from gradcheck.judge.registry import load_rules
        from gradcheck.judge.select import select as selected
        from gradcheck.report.rule_page import rule_facts, rule_list, rule_page

        every = load_rules(settings_of(None, False, rule_paths=rules).rule_paths)
        listed = selected(every, split(select) or ["ALL"])
        if not wants_text(output_format):
            print(json.dumps([rule_facts(r) for r in listed], indent=2))
        else:
            print("\n\n".join(map(rule_page, listed)) if whole else rule_list(listed))
