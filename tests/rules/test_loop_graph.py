"""LOOP010 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.rules.loop.graph_retained import graph_retained
from gradcheck.types.loop import LoopRetained
from tests.literals import location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only


@pytest.mark.parametrize(("steps", "fires"), [(8, True), (7, False)])
def test_graphs_that_are_kept(steps, fires):
    kept = LoopRetained(steps, 9, 4500, "total", location(20))
    assert bool(findings(graph_retained, measurement(loop=loop(retained=kept)))) == fires


def test_it_says_what_keeps_them_where_and_how_much():
    m = measurement(loop=loop(retained=LoopRetained(200, 200, 3_200_000, "total", location(20)), backward_site=location(18)))
    f = only(graph_retained, m)
    assert "total keeps" in f.message and "3.2 MB" in f.message and f.location == location(20)
    m = measurement(loop=loop(retained=LoopRetained(16, 16, 4500), backward_site=location(18)))
    assert "4.5 kB" in only(graph_retained, m).message and only(graph_retained, m).location == location(18)


def test_loops_that_keep_none():
    assert findings(graph_retained, measurement(loop=loop())) == []
    assert no_verdict(graph_retained, measurement()) == "not-applicable"
    assert no_verdict(graph_retained, measurement(loop=loop(retained=None))) == "not-measured"
