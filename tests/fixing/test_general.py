"""The search for treatments that no finding asks for, on a ward whose trainings are made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from gradcheck.fixing.general import PATIENCE, WELL, Search, steps_to_train
from gradcheck.fixing.ward import PROOF_SEED, SEARCH_SEEDS, Terms, TimeUp, Ward
from gradcheck.remedies.vocabulary import VOCABULARY

RATE = 1e-3
MEASUREMENT = SimpleNamespace(optimizer=SimpleNamespace(lr=RATE))


@dataclass
class MadeUp(Ward):
    """`losses(rate, treatments, steps, seed)`: in units of chance."""

    losses: object = None
    trained: list[tuple[float, tuple[str, ...], int, int]] = field(default_factory=list)
    most: int = 10**6  # trainings until time is up

    def train(self, plan, steps=None, seed=None):
        if len(self.trained) >= self.most:
            raise TimeUp
        steps, seed = steps or self.terms.steps, self.seeds[0] if seed is None else seed
        rate = next((p.settings["lr"] for p in plan if "learning-rate" in p.treatment), RATE)
        names = tuple(p.treatment for p in plan if "learning-rate" not in p.treatment)
        self.trained.append((rate, names, steps, seed))
        value = self.losses(rate, names, steps, seed)
        return SimpleNamespace(relative=lambda reference: value)


def search(losses, kept=(), unsafe=False, **more):
    vocabulary = {name: VOCABULARY[name] for name in ("lower-learning-rate", "raise-learning-rate", *more.pop("also", ()))}
    ward = MadeUp(None, vocabulary, None, Terms(unsafe), lambda what, share: None, losses=losses, **more)
    found = Search(ward, MEASUREMENT, 1.0, kept)
    found.run()
    return found, ward


def rate_of(plan):
    return next((p.settings["lr"] for p in plan if "learning-rate" in p.treatment), RATE)


def at(rate):
    return VOCABULARY["lower-learning-rate" if rate < RATE else "raise-learning-rate"].prescription("", settings={"lr": rate})


def test_the_rate_that_trains_is_found_and_nothing_else_is_tried():
    found, ward = search(lambda rate, names, steps, seed: 0.1 if rate == pytest.approx(0.1) else 1.0)
    assert rate_of(found.best) == pytest.approx(0.1) and found.steps == ward.terms.steps
    assert not any(names for _, names, _, _ in ward.trained)


def test_what_trains_on_one_seed_by_luck_is_passed_over_for_what_trains_on_both():
    def losses(rate, names, steps, seed):
        if rate == pytest.approx(0.01):
            return 0.1 if seed == SEARCH_SEEDS[0] else 1.0
        return 0.3 if rate == pytest.approx(1e-4) else 1.0

    found, _ = search(losses)
    assert rate_of(found.best) == pytest.approx(1e-4) and found.relative == 0.3


def test_a_slow_fall_is_given_more_steps_before_anything_else_is_tried():
    found, ward = search(lambda rate, names, steps, seed: 0.4 if steps > 100 else 0.7)
    assert found.best == () and found.steps == PATIENCE * ward.terms.steps
    assert {rate for rate, _, _, _ in ward.trained} == {RATE}


def test_a_rate_that_a_finding_set_too_low_does_not_hide_the_good_ones():
    kept = (at(1e-12),)
    found, _ = search(lambda rate, names, steps, seed: 0.1 if rate == pytest.approx(1e-2) else 1.0, kept)
    assert rate_of(found.best) == pytest.approx(1e-2)


def test_no_treatment_is_prescribed_on_top_of_itself():
    kept = VOCABULARY["clip-gradient-norm"].prescription("", settings={"clipping": 1.0})
    _, ward = search(lambda rate, names, steps, seed: 1.0, (kept,), also=("clip-gradient-norm",))
    assert {names for _, names, _, _ in ward.trained} == {("clip-gradient-norm",)}


def test_time_that_is_up_leaves_the_best_so_far():
    found, ward = search(lambda rate, names, steps, seed: 0.95 if rate < RATE else 1.0, most=14)
    assert len(ward.trained) == 14 and found.steps == 0
    assert found.best == () and found.relative == 1.0


def test_a_plan_trains_after_the_steps_that_both_seeds_need():
    ward = MadeUp(None, VOCABULARY, None, Terms(), lambda what, share: None, losses=lambda rate, names, steps, seed: 0.2 + 0.5 * seed)
    assert steps_to_train(ward, (), 1.0) == 0
    ward.losses = lambda rate, names, steps, seed: WELL
    assert steps_to_train(ward, (), 1.0) == ward.terms.steps


def test_another_search_and_its_proof_use_no_seed_of_the_first():
    ward = MadeUp(None, VOCABULARY, None, Terms(), lambda what, share: None)
    used = {*ward.seeds, *range(PROOF_SEED, PROOF_SEED + ward.terms.seeds)}
    ward.reseed()
    assert used.isdisjoint({*ward.seeds, *range(ward.proof_seed, ward.proof_seed + ward.terms.seeds)})
