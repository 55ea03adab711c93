"""CLIP rules on literal measurements."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.clipping.clipping_by_value import clipping_by_value
from gradcheck.rules.clipping.clipping_needed import clipping_needed, largest_spike
from gradcheck.rules.clipping.clipping_too_tight import clipping_too_tight
from gradcheck.types.checks import Clip
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import Run
from tests.literals import falling, location, measurement, optimizer, parameter, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities


def with_norms(norms: list[float], **overrides: Any) -> Measurement:
    probe = overrides.pop("probe", None) or run(falling(steps=len(norms)), gradient_norms=tuple(norms))
    return measurement(probe=probe, **overrides)


def one_spike(height: float, at: int = 50, after: float = 0.0) -> Run:
    """Norms of 1 with one spike; the loss then rises by `after` of its start for one step."""
    losses, norms = list(falling()), [1.0] * 100
    norms[at] = height
    losses[at + 1] += after * losses[0]
    return run(losses, gradient_norms=tuple(norms))


class TestLargestSpike:
    def test_it_is_found_against_its_neighbours(self):
        s = largest_spike(measurement(probe=one_spike(7.0, after=0.5)))
        assert s is not None and (s.step, s.norm, s.usual, s.ratio) == (50, 7.0, 1.0, 7.0)
        assert s.jump == pytest.approx(0.5, abs=0.05)

    def test_norms_that_fall_with_the_loss_are_no_spikes(self):
        s = largest_spike(with_norms([0.95**i for i in range(100)]))
        assert s is None or s.ratio < 1.5

    def test_early_steps_and_small_norms_do_not_count(self):
        late = [1.0] * 20 + [1e-6] * 80
        late[60] = 0.5
        assert largest_spike(with_norms(late)) is None
        s = largest_spike(measurement(probe=one_spike(9.0, at=19)))
        assert s is not None and s.ratio == 1.0


class TestClippingNeeded:
    @pytest.mark.parametrize(("height", "expected"), [(2.9, []), (3.1, ["info"]), (4.9, ["info"]), (5.1, ["info"])])
    def test_spikes_of_a_training_that_learns_undisturbed_are_notes(self, height, expected):
        assert severities(clipping_needed, measurement(probe=one_spike(height))) == expected

    def test_a_loss_that_says_nothing_makes_no_warning(self):
        probe = replace(one_spike(15.0, after=0.9), surrogate="it weighs what the model outputs, as policy gradients do")
        assert only(clipping_needed, measurement(probe=probe)).severity == "info"

    @pytest.mark.parametrize(("height", "after", "expected"), [(9.9, 0.5, "info"), (10.1, 0.5, "warning"), (5.1, 0.2, "info")])
    def test_spikes_that_raise_the_loss_are_a_warning(self, height, after, expected):
        assert only(clipping_needed, measurement(probe=one_spike(height, after=after))).severity == expected

    def test_so_are_spikes_of_a_training_that_does_not_learn(self):
        norms = one_spike(12.0).gradient_norms
        f = only(clipping_needed, measurement(probe=stalled(gradient_norms=norms)))
        assert f.severity == "warning" and "12 at step 50, 12 times that of the steps around it (limit 10)" in f.message
        assert severities(clipping_needed, measurement(probe=stalled(gradient_norms=one_spike(9.0).gradient_norms))) == ["info"]

    def test_the_remedy_says_the_90th_percentile(self):
        norms = [1.0 + i / 1000 for i in range(100)]
        norms[50] = 8.0
        f = only(clipping_needed, with_norms(norms))
        assert "clip_grad_norm_(model.parameters(), 1.09)" in f.remedies[0].text

    @pytest.mark.parametrize(("width", "height", "expected"), [(0.02, 3.1, ["info"]), (0.3, 4.0, []), (0.3, 9.0, ["info"])])
    def test_the_largest_of_many_norms_that_vary_is_no_spike(self, width, height, expected):
        rng = random.Random(0)
        norms = [math.exp(rng.gauss(0, width)) for _ in range(300)]
        norms[150] = height
        assert severities(clipping_needed, with_norms(norms)) == expected

    @pytest.mark.parametrize("count", [100, 300, 3000])
    def test_chance_alone_hardly_ever_gives_a_note(self, count):
        """Log-normal norms without any spike, whatever the length of the run."""
        rng = random.Random(count)
        notes = sum(bool(findings(clipping_needed, with_norms([math.exp(rng.gauss(0, 0.4)) for _ in range(count)]))) for _ in range(20))
        assert notes <= 1

    def test_a_loss_around_zero_does_not_jump_by_its_own_size(self):
        losses = [0.5 * (-1) ** i - 0.001 for i in range(100)]
        losses[0] = 0.001
        m = measurement(probe=run(losses, gradient_norms=one_spike(12.0).gradient_norms), chance=None)
        assert severities(clipping_needed, m) == ["info"]

    def test_a_training_that_breaks_down_suddenly(self):
        norms = (*[1.0] * 15, 30.0, 1e5)
        probe = run((*[2.0] * 15, 9.0, math.inf), gradient_norms=norms, ended="non-finite")
        f = only(clipping_needed, measurement(probe=probe))
        assert f.severity == "warning" and "30 at step 15" in f.message and "not finite any more" in f.message
        from_start = run((2.0, *[9.0] * 14, 9.0, math.inf), gradient_norms=norms, ended="non-finite")
        assert no_verdict(clipping_needed, measurement(probe=from_start)) == "not-measured"

    def test_clipping_below_the_spike_acquits(self):
        probe = one_spike(11.0, after=0.5)
        assert findings(clipping_needed, measurement(probe=probe, clip=Clip("norm", 2.0, 0.01))) == []
        assert severities(clipping_needed, measurement(probe=probe, clip=Clip("norm", 20.0, 0.0))) == ["warning"]

    def test_few_steps_say_nothing(self):
        short = run(falling(steps=39), gradient_norms=(1.0,) * 39)
        assert no_verdict(clipping_needed, measurement(probe=short)) == "not-measured"


class TestClippingTooTight:
    def sgd(self, share: float, threshold: float = 0.5, **overrides: Any) -> Measurement:
        return measurement(**{"optimizer": optimizer("SGD", lr=0.1), "clip": Clip("norm", threshold, share, site=location(9))} | overrides)

    @pytest.mark.parametrize(("share", "expected"), [(0.49, []), (0.51, ["info"])])
    def test_more_than_half_of_the_steps(self, share, expected):
        assert severities(clipping_too_tight, self.sgd(share)) == expected

    @pytest.mark.parametrize(("threshold", "expected"), [(0.11, "info"), (0.09, "warning")])
    def test_a_tenth_of_the_usual_norm_is_a_warning(self, threshold, expected):
        f = only(clipping_too_tight, self.sgd(1.0, threshold))
        assert f.severity == expected and f.location == location(9) and "raise the threshold to 1" in f.remedies[0].text

    def test_the_rate_that_acts_is_in_the_message(self):
        assert "SGD at rate 0.1 trains at about 0.05" in only(clipping_too_tight, self.sgd(1.0)).message

    def test_a_probe_that_does_not_learn_is_a_warning(self):
        assert severities(clipping_too_tight, self.sgd(1.0, probe=stalled())) == ["warning"]

    @pytest.mark.parametrize(("threshold", "expected"), [(0.01, "info"), (1e-6, "warning")])
    def test_adaptive_optimizers_undo_clipping_down_to_their_epsilon(self, threshold, expected):
        weights = (parameter("fc1.weight"),)
        m = self.sgd(1.0, threshold, probe=stalled(), optimizer=optimizer("Adam", eps=1e-8), parameters=weights)
        assert severities(clipping_too_tight, m) == [expected]

    def test_without_clipping(self):
        assert no_verdict(clipping_too_tight, measurement()) == "not-applicable"
        assert no_verdict(clipping_too_tight, self.sgd(1.0, clip=Clip("value", 0.1))) == "not-applicable"
        assert no_verdict(clipping_too_tight, self.sgd(1.0, clip=Clip("norm", 0.1))) == "not-measured"


class TestClippingByValue:
    @pytest.mark.parametrize(
        ("coordinates", "cosine", "expected"), [(0.02, 0.89, ["info"]), (0.009, 0.5, []), (0.5, 0.91, []), (0.5, 0.5, ["info"])]
    )
    def test_many_entries_and_another_direction(self, coordinates, cosine, expected):
        clip = Clip("value", 0.01, None, coordinates, cosine)
        assert severities(clipping_by_value, measurement(clip=clip)) == expected

    def test_without_clipping_by_value(self):
        assert no_verdict(clipping_by_value, measurement()) == "not-applicable"
        assert no_verdict(clipping_by_value, measurement(clip=Clip("norm", 1.0, 0.1))) == "not-applicable"
        assert no_verdict(clipping_by_value, measurement(clip=Clip("value", 1.0))) == "not-measured"
