"""Writes docs/gradcheck.schema.json: the JSON Schema of `[tool.gradcheck]`, from the keys and the rules. `python docs/make_schema.py`"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gradcheck.judge.registry import builtin_rules  # noqa: E402
from gradcheck.report.config_schema import schema  # noqa: E402

FILE = ROOT / "docs" / "gradcheck.schema.json"


def text() -> str:
    return json.dumps(schema(builtin_rules()), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
