"""DATA007 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.rules.data.labels_shuffled import labels_shuffled
from gradcheck.types.data import Turned
from gradcheck.types.loop import LoopPairing
from tests.literals import data, location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only


@pytest.mark.parametrize(("trained", "source", "fires"), [(0.1, 0.2, True), (0.11, 0.9, False), (-0.2, 0.19, False)])
def test_limits(trained, source, fires):
    pairing = LoopPairing(trained, source, 400, location(20))
    assert bool(findings(labels_shuffled, measurement(loop=loop(pairing=pairing)))) == fires


def test_it_says_what_a_simple_model_makes_of_both():
    f = only(labels_shuffled, measurement(loop=loop(pairing=LoopPairing(-0.05, 0.8, 400, location(20)))))
    assert "explains 0 %" in f.message and "80 %" in f.message and f.location == location(20)


def test_pairs_that_are_kept():
    assert no_verdict(labels_shuffled, measurement()) == "not-applicable"
    assert no_verdict(labels_shuffled, measurement(loop=loop())) == "not-applicable"


@pytest.mark.parametrize(("fitting", "mirrored", "fires"), [(0.1, 0.1, True), (0.9, 0.09, False), (0.0, 0.9, False)])
def test_maps_of_which_some_fit_their_image_and_others_only_when_mirrored(fitting, mirrored, fires):
    m = measurement(data=data(turned=Turned(64, fitting, mirrored, "left to right")), loop=loop(pairing=LoopPairing(0.5, 0.5, 400)))
    assert bool(findings(labels_shuffled, m)) == fires
