"""Markdown for a pull request: rendered by a CommonMark parser, which shows what would become markup."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from gradcheck.report import markdown
from tests.report.reports import CLEAN, FAILED, FAULTY, FULL_OF_HOSTILITY, IN_PART, INFO, MIXED, VIEW, WARNING, finding, report

ALLOWED = {"h3", "p", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre", "code", "ul", "li", "sub"}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.prose, self.depth = set(), [], "", "", 0

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [pair for pair in attrs if tag != "code"]
        self.depth += tag == "code"

    def handle_endtag(self, tag):
        self.depth -= tag == "code"

    def handle_data(self, data):
        self.text += data
        self.prose += "" if self.depth else data


def seen(text):
    markdown_it = pytest.importorskip("markdown_it")
    tags = Tags()
    tags.feed(markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    return tags


def test_it_says_verdict_finding_place_number_and_snippet():
    text = markdown.render([MIXED], VIEW)
    page = seen(text)
    assert text.startswith("<!-- gradcheck -->\n### ❌ gradcheck: `model.py` will not train as it is")
    for words in (
        "vanishing-gradient (GRAD001)",
        "model.py:3",
        "slope 0.5 decades (limit 0.1)",
        "self.fc = nn.Linear(8, 8)",
        "initialise it",
    ):
        assert words in page.text
    assert page.tags <= ALLOWED and page.attributes == []


def test_hostile_text_makes_no_markup_and_mentions_nobody():
    page = seen(markdown.render([FULL_OF_HOSTILITY], VIEW))
    assert page.tags <= ALLOWED and page.attributes == []
    assert "</script><b onload=x>" in page.text
    assert "@\N{ZERO WIDTH SPACE}someone" in page.prose and "@someone" not in page.prose


def test_the_headline_is_that_of_the_worst_finding():
    heads = [markdown.render([report(*findings)], VIEW).splitlines()[1] for findings in ([FAULTY], [WARNING], [INFO], [])]
    assert [head.partition("`model.py` ")[2] for head in heads] == [
        "will not train as it is",
        "trains, at a cost",
        "no fault found",
        "no findings",
    ]


def test_a_run_in_part_is_not_called_healthy():
    lines = markdown.render([IN_PART], VIEW).splitlines()
    assert lines[1] == "### ⚠️ gradcheck: `model.py` was judged in part"
    assert "- why: could not repeat the training step" in lines and "- help: watch it" in lines
    assert "will not train as it is" in markdown.render([FAILED], VIEW).splitlines()[1]


def test_a_failed_assertion_says_nothing_about_the_training():
    failed = finding("META002", "error", line=None)
    assert "`model.py` does not pass this project's gate" in markdown.render([report(failed, INFO)], VIEW).splitlines()[1]
    assert "`model.py` trains, at a cost" in markdown.render([report(failed, WARNING)], VIEW).splitlines()[1]


def test_known_findings_are_counted_and_not_listed():
    text = markdown.render([report(WARNING, known=(FAULTY,))], VIEW)
    assert "1 known finding of the baseline not listed" in text and "GRAD001" not in text


def test_it_fits_into_a_comment_whatever_was_found():
    many = [finding(line=n, message="long " * 2000) for n in range(1, 40)]
    text = markdown.render([report(*many)], VIEW)
    assert len(text.encode()) <= 60_000 and "19 more findings not listed." in text
    assert markdown.document([report(*many)], 10) == ""
    assert markdown.document([CLEAN], 60_000).count("No findings") == 1
