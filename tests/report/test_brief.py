"""The `brief` format: what to know and what to run next, always within its room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.report.brief import COMMANDS, MOST_TOKENS, ROOM, brief, render
from gradcheck.types.finding import Remedy
from tests.report.reports import CLEAN, FAILED, FULL_OF_HOSTILITY, IN_PART, MIXED, finding, report


def test_it_says_what_is_wrong_where_and_what_to_run_next():
    text = render([report(finding(remedies=(Remedy("he-init", "initialise it", "safe"),)))])
    assert "error vanishing-gradient (GRAD001) at model.py:3" in text and "help: initialise it" in text
    assert "next: gradcheck fix model.py --diff" in text and "gradcheck rule vanishing-gradient" in text


def test_a_fix_is_proposed_only_where_something_can_be_tried():
    assert "gradcheck fix" not in render([report(finding(remedies=(Remedy("x", "look at it", "advice"),)))])
    assert "next: nothing to fix; gradcheck watch -- python model.py" in render([CLEAN])


@pytest.mark.parametrize("reports", [(MIXED,), (CLEAN,), (FULL_OF_HOSTILITY,), (IN_PART, FAILED), (MIXED,) * 300])
def test_it_stays_within_its_room(reports):
    text = render(reports)
    assert len(text) <= ROOM and text.endswith("\n") and "\x1b" not in text


def test_many_and_long_findings_are_cut_and_counted():
    many = report(*[replace(finding(line=i), message="word " * 500, layers=("a.b." * 300,)) for i in range(1, 60)])
    text = render([many])
    assert len(text) <= ROOM and "more findings" in text and "next:" in text
    short = brief([many] * 100, COMMANDS, room=600)
    assert "... 9" in short and short.splitlines()[-1].startswith("next: gradcheck") and len(short) <= 600


def test_the_room_is_that_of_the_tokens():
    assert 2.3 * MOST_TOKENS < ROOM < 3.7 * MOST_TOKENS  # characters a token of the densest and of the usual text that was measured
