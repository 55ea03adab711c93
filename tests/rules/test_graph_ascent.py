"""GRAPH004 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.rules.graph.gradient_ascent import gradient_ascent
from gradcheck.rules.loss.inert_loss_term import inert_loss_term
from gradcheck.types.checks import IdleTerm
from gradcheck.types.losses import Ascent
from tests.literals import diverged, location, loop, loss_call, measurement, optimizer, run
from tests.rules.verdicts import findings, only, severities


class TestGradientAscent:
    def test_descent_passes(self):
        assert findings(gradient_ascent, measurement(ascent=Ascent(0.8))) == []

    @pytest.mark.parametrize(("cosine", "expected"), [(-0.04, []), (-0.06, ["error"]), (-1.0, ["error"])])
    def test_a_step_uphill_is_an_error(self, cosine, expected):
        assert severities(gradient_ascent, measurement(ascent=Ascent(cosine))) == expected

    def test_the_message_holds_cosine_and_limit(self):
        f = only(gradient_ascent, measurement(ascent=Ascent(-0.9)))
        assert "-0.9 (limit -0.05)" in f.message and "AdamW" in f.message

    @pytest.mark.parametrize(("cosine", "expected"), [(-0.4, []), (-0.6, ["error"])])
    def test_weight_decay_may_turn_the_first_step(self, cosine, expected):
        assert severities(gradient_ascent, measurement(ascent=Ascent(cosine), optimizer=optimizer(weight_decay=0.1))) == expected

    def test_an_assumed_optimizer_is_never_at_fault(self):
        assert findings(gradient_ascent, measurement(ascent=Ascent(-1.0), optimizer=optimizer(given=False))) == []

    def test_maximize_with_a_known_loss_is_an_error(self):
        m = measurement(ascent=Ascent(-0.8), optimizer=optimizer(maximize=True))
        assert "it raises cross_entropy, from 2.3" in only(gradient_ascent, m).message

    def test_maximize_of_a_negated_loss_is_right(self):
        m = measurement(ascent=Ascent(-0.8), optimizer=optimizer(maximize=True), losses=(loss_call(weight_in_total=-1.0),))
        assert findings(gradient_ascent, m) == []

    def test_maximize_of_an_unknown_objective_is_advice(self):
        m = measurement(ascent=Ascent(-0.8), optimizer=optimizer(maximize=True), losses=())
        assert severities(gradient_ascent, m) == ["info"]

    def test_a_negated_loss_alone_is_an_error(self):
        m = measurement(losses=(loss_call(weight_in_total=-1.0),), probe=run((-2.3, -2.4, -3.0)), ascent=Ascent(1.0))
        f = only(gradient_ascent, m)
        assert f.severity == "error" and f.location == loss_call().site and "weight -1" in f.message

    @pytest.mark.parametrize("unbounded", [False, True])
    def test_a_generator_that_raises_the_loss_of_its_discriminator_is_advice(self, unbounded):
        """The original minimax game; both sides are trained."""
        m = measurement(
            losses=(loss_call(weight_in_total=-1.0),), probe=run((-0.7, -0.5)), ascent=Ascent(1.0, unbounded), loop=loop(opposed=True)
        )
        assert severities(gradient_ascent, m) == ["info"]

    def test_a_subtracted_term_beside_others_is_advice_unless_it_runs_away(self):
        losses = (loss_call(), loss_call(weight_in_total=-0.1, site=location(31)))
        assert severities(gradient_ascent, measurement(losses=losses)) == ["info"]
        assert severities(gradient_ascent, measurement(losses=losses, ascent=Ascent(1.0, unbounded=True))) == ["error"]

    def test_an_actor_may_leave_its_critic_behind(self):
        m = measurement(losses=(), ascent=Ascent(1.0, unbounded=True), probe=run((0.1, -1.0, -40.0, -900.0)), loop=loop(opposed=True))
        assert findings(gradient_ascent, m) == []

    def test_a_loss_without_bound_is_an_error_for_itself(self):
        m = measurement(losses=(), ascent=Ascent(1.0, unbounded=True), probe=run((0.1, -1.0, -40.0, -900.0)))
        f = only(gradient_ascent, m)
        assert f.severity == "error" and "-900" in f.message and f.confirmed.startswith("by the probe")

    def test_without_a_loss_that_is_known_the_place_is_where_backward_is_called(self):
        m = measurement(losses=(), ascent=Ascent(1.0, unbounded=True), probe=run((0.1, -900.0)), loop=loop(backward_site=location(9)))
        assert only(gradient_ascent, m).location == location(9)

    def test_a_density_may_exceed_one(self):
        m = measurement(losses=(loss_call("gaussian_nll_loss"),), ascent=Ascent(1.0, unbounded=True), probe=diverged())
        assert findings(gradient_ascent, m) == []

    def test_a_loss_that_runs_away_is_told_at_the_sum_that_lowers_it(self):
        term = IdleTerm("runaway", "add", location(40), -880.0, 900.0)
        m = measurement(losses=(loss_call(),), ascent=Ascent(1.0, unbounded=True), probe=run((0.1, -900.0)), idle_terms=(term,))
        assert only(gradient_ascent, m).location == location(40)

    @pytest.mark.parametrize(("what", "severity"), [("upside-down", "error"), ("objective", "warning")])
    def test_a_ratio_of_probabilities_that_leads_the_wrong_way(self, what, severity):
        m = measurement(losses=(), ascent=Ascent(1.0), idle_terms=(IdleTerm("ratio", what, location(36), 1.01, 0.4),))
        f = only(gradient_ascent, m)
        assert f.severity == severity and f.location == location(36) and findings(inert_loss_term, m) == []

    @pytest.mark.parametrize(("what", "severity"), [("classes", "error"), ("map", "warning")])
    def test_a_loss_that_leads_away_from_its_targets(self, what, severity):
        m = measurement(losses=(), idle_terms=(IdleTerm("away", what, location(31), 0.96, 0.4),))
        f = only(gradient_ascent, m)
        assert f.severity == severity and f.location == location(31) and "96 %" in f.message
        assert (
            findings(gradient_ascent, measurement(ascent=Ascent(1.0), idle_terms=(IdleTerm("away", what, location(31), 0.94, 0.4),))) == []
        )
        assert findings(inert_loss_term, m) == []
