"""The site is built strictly, holds every page of a rule, can be searched, and takes nothing from the network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = re.findall(r"\((\w+)\.html\)", (ROOT / "docs" / "examples" / "README.md").read_text(encoding="utf-8"))


def test_the_gallery_names_the_examples_that_are_made():
    spec = importlib.util.spec_from_file_location("make_examples", ROOT / "docs" / "make_examples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert list(module.PAGES) == EXAMPLES


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, with stand-ins for the example reports, which take minutes."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocs")
    source = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", source / "docs")
    for name in ("mkdocs.yml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, source)
    for name in EXAMPLES:
        (source / "docs" / "examples" / f"{name}.html").write_text("<!doctype html><title>report</title>")
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(words, cwd=source, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source / "site"


def test_every_rule_has_a_page_that_the_search_finds(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {document["location"].partition("#")[0] for document in index["docs"]}
    for page in (ROOT / "docs" / "rules").glob("*.md"):
        assert f"rules/{'index' if page.stem == 'README' else page.stem}.html" in found


def test_nothing_is_taken_from_the_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?https?:|<link[^>]*rel=[\"']?stylesheet[^>]*https?:", text), page


def test_what_is_no_page_is_served_as_it_is(site):
    assert (site / "llms.txt").is_file() and (site / "gradcheck.schema.json").is_file() and not list(site.rglob("*.py"))
    assert all((site / "examples" / f"{name}.html").is_file() for name in EXAMPLES)
