"""LOOP011 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.rules.loop.accumulation_unweighted import accumulation_unweighted
from gradcheck.types.loop import LoopWeighting
from tests.literals import location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only


@pytest.mark.parametrize(
    ("ratio", "difference", "fires"), [(2.0, 0.2, True), (1.99, 0.5, False), (5.0, 0.199, False)], ids=["at both", "weights", "gradient"]
)
def test_limits(ratio, difference, fires):
    facts = loop(accumulated=4, weighting=LoopWeighting(ratio, difference, 3, 40, location(20)))
    assert bool(findings(accumulation_unweighted, measurement(loop=facts))) == fires


def test_it_says_how_many_elements_and_where():
    f = only(accumulation_unweighted, measurement(loop=loop(accumulated=4, weighting=LoopWeighting(5.6, 0.4, 3, 57, location(20)))))
    assert "4 means over 3 to 57" in f.message and "5.6 times" in f.message and f.location == location(20)


def test_where_nothing_can_be_told():
    assert no_verdict(accumulation_unweighted, measurement()) == "not-applicable"
    assert no_verdict(accumulation_unweighted, measurement(loop=loop(accumulated=1))) == "not-applicable"
    assert no_verdict(accumulation_unweighted, measurement(loop=loop(accumulated=4))) == "not-measured"
    assert no_verdict(accumulation_unweighted, measurement(loop=loop(accumulated=None))) == "not-measured"


def test_sequences_of_other_lengths_are_passes_of_one_step_too():
    """They are not alike enough for the rules that ask how the passes of a step are scaled."""
    facts = loop(accumulated=1, weighting=LoopWeighting(5.6, 0.4, 3, 57, location(20), 4))
    assert "adds up 4 means" in only(accumulation_unweighted, measurement(loop=facts)).message
