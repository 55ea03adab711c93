"""What the documents show must work: the rule in CONTRIBUTING.md is run as it stands there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_links_between_documents_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / link).exists(), f"{name} links to {link}"


def test_links_of_the_guides_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_index_of_the_guides_names_them_all() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, f"docs/README.md does not name {page.name}"


def test_the_map_for_language_models_leads_somewhere_and_names_real_commands() -> None:
    from gradcheck.cli.app import app

    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# gradcheck\n\n> ")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / "docs" / link).exists(), f"llms.txt links to {link}"
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None}
    assert set(re.findall(r"`gradcheck (\w+)", text)) <= commands


def test_the_guide_for_ci_names_every_format_statistic_and_score() -> None:
    from gradcheck.analysis.statistics import CATEGORIES, STATS
    from gradcheck.report.outputs import FORMATS

    guide = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    for name in (*FORMATS, *STATS, *CATEGORIES):
        assert f"`{name}`" in guide, name


def test_the_pages_of_the_rules_are_as_the_rules_say() -> None:
    spec = importlib.util.spec_from_file_location("make_rules", ROOT / "docs" / "make_rules.py")
    assert spec is not None and spec.loader is not None
    make_rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_rules)
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "rules").glob("*.md")}
    assert written == make_rules.documents(), "run: python docs/make_rules.py"
