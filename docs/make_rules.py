"""Writes what the rules say of themselves: docs/rules/, a page per rule and their index, and docs/gradcheck.schema.json, the JSON Schema of
`[tool.gradcheck]`. `python docs/make_rules.py`
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.config_schema import schema  # noqa: E402
from gradcheck.judge.registry import builtin_rules  # noqa: E402
from gradcheck.types.rule import Rule  # noqa: E402

FOLDER = ROOT / "docs" / "rules"
SCHEMA = ROOT / "docs" / "gradcheck.schema.json"


def page(rule: Rule) -> str:
    """One rule in Markdown: what it may give, its page, its limits as a table."""
    consequences = f" What it explains is shown under it: {', '.join(rule.explains)}." if rule.explains else ""
    parts = [f"# {rule.name} ({rule.code})", f"Severity: up to {rule.up_to}.{consequences}", rule.page]
    if rule.limits:
        rows = [f"| `{name.replace('_', '-')}` | {x.value:g} | {x.unit} | {_source(x.source)} |" for name, x in rule.limits.items()]
        table = "\n".join(["| limit | value | unit | source |", "|---|---|---|---|", *rows])
        parts.append(f"## Settings\n\nIn `[tool.gradcheck.rules.{rule.name}]`:\n\n{table}")
    return "\n\n".join(parts) + "\n"


def index(rules: list[Rule]) -> str:
    """The table of all rules, by family."""
    rows = [f"| [{r.name}]({r.name}.md) | {r.code} | {r.up_to} | {_cell(r.summary)} |" for r in rules]
    head = "# Rules\n\n`error` is a prediction that training fails or is wrong. Written by `python docs/make_rules.py`.\n"
    return "\n".join([head, "| rule | code | up to | what it finds |", "|---|---|---|---|", *rows]) + "\n"


def documents() -> dict[str, str]:
    """File name in docs/rules -> its text."""
    rules = list(builtin_rules())
    return {"README.md": index(rules)} | {f"{rule.name}.md": page(rule) for rule in rules}


def schema_text() -> str:
    """The schema, a line for each rule."""
    whole = schema(builtin_rules())
    table = whole["properties"]["rules"]
    rules = ",\n".join(f"    {json.dumps(name)}: {json.dumps(own, ensure_ascii=False)}" for name, own in table["properties"].items())
    table["properties"] = "RULES"
    return json.dumps(whole, indent=1, ensure_ascii=False).replace('"RULES"', f"{{\n{rules}\n   }}") + "\n"


def _source(text: str) -> str:
    """Calibrations are linked to where they are explained."""
    return re.sub(r"calibration E\d+", r"[\g<0>](../limits.md)", _cell(text))


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("\n", " ")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    texts = documents()
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    for old in FOLDER.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
