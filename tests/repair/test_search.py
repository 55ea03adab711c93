"""The search for treatments that no finding asks for, on a lab whose trainings are made up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.repair.lab import PROOF_SEED, SEARCH_SEEDS, RepairLab, TimeUp, signature
from gradcheck.repair.options import RepairOptions
from gradcheck.repair.plan import ADAPTIVE_RATE, usual_rates
from gradcheck.repair.search import PATIENCE, WELL, RemedySearch, steps_to_train
from gradcheck.repair.session import PUT_OFF, SPARED, RepairSession
from gradcheck.types.fix import Outcome
from tests.literals import measurement, optimizer, stalled

RATE = 1e-3
MEASUREMENT = SimpleNamespace(optimizer=optimizer(lr=RATE), attentions=())


class MadeUp(RepairLab):
    """`losses(rate, treatments, steps, seed)`: in units of chance. `most`: trainings until time is up."""

    def __init__(self, *arguments, losses=None, most=10**6):
        super().__init__(*arguments)
        self.losses, self.most = losses, most
        self.trained: list[tuple[float, tuple[str, ...], int, int]] = []

    def treated(self, plan, seed=0):
        return None

    def train(self, plan, steps=None, seed=None):
        if len(self.trained) >= self.most:
            raise TimeUp
        steps, seed = steps or self.options.steps, self.seeds[0] if seed is None else seed
        rate = rate_of(plan)
        names = tuple(p.treatment for p in plan if "learning-rate" not in p.treatment)
        self.trained.append((rate, names, steps, seed))
        value = self.losses(rate, names, steps, seed)
        return SimpleNamespace(relative=lambda reference: value, skill=None, comparable=True, failed=False)


def fits_any(name):
    treatment = CATALOGUE[name]
    return replace(treatment, propose=lambda finding, m: [treatment.fix(name, finding, settings={"lr": 0, "max_norm": 1})])


def made_up(losses, unsafe=False, also=(), **more):
    catalogue = {name: CATALOGUE[name] for name in ("lower-learning-rate", "raise-learning-rate")}
    catalogue |= {name: fits_any(name) for name in also}
    return MadeUp(None, catalogue, None, RepairOptions(unsafe), lambda what, share: None, losses=losses, **more)


def search(losses, kept=(), measured=MEASUREMENT, **more):
    lab = made_up(losses, **more)
    found = RemedySearch(lab, measured, 1.0, kept)
    found.run()
    return found, lab


def rate_of(plan):
    return next((p.settings["lr"] for p in plan if "learning-rate" in p.treatment or p.treatment == "adaptive-optimizer"), RATE)


def at(rate):
    return CATALOGUE["lower-learning-rate" if rate < RATE else "raise-learning-rate"].fix("", settings={"lr": rate})


def test_the_rate_that_trains_is_found_and_nothing_else_is_tried():
    found, lab = search(lambda rate, names, steps, seed: 0.1 if rate == pytest.approx(0.1) else 1.0)
    assert rate_of(found.best) == pytest.approx(0.1) and found.steps == lab.options.steps
    assert not any(names for _, names, _, _ in lab.trained)


def test_what_trains_on_one_seed_by_luck_is_passed_over_for_what_trains_on_both():
    def losses(rate, names, steps, seed):
        if rate == pytest.approx(0.01):
            return 0.1 if seed == SEARCH_SEEDS[0] else 1.0
        return 0.3 if rate == pytest.approx(1e-4) else 1.0

    found, _ = search(losses)
    assert rate_of(found.best) == pytest.approx(1e-4) and found.relative == 0.3


def test_a_slow_fall_is_given_more_steps_before_anything_else_is_tried():
    found, lab = search(lambda rate, names, steps, seed: 0.4 if steps > 100 else 0.7)
    assert found.best == () and found.steps == PATIENCE * lab.options.steps
    assert {rate for rate, _, _, _ in lab.trained} == {RATE}


def test_what_has_only_begun_to_fall_is_given_more_steps_when_its_round_is_over():
    losses = lambda rate, names, steps, seed: (0.1 if steps > 100 else 0.92) if rate == pytest.approx(0.01) else 1.0  # noqa: E731
    found, lab = search(losses, also=("lsuv-init",))
    assert rate_of(found.best) == pytest.approx(0.01) and found.steps == PATIENCE * lab.options.steps
    assert not any(names for _, names, _, _ in lab.trained)


def test_a_rate_that_a_finding_set_too_low_does_not_hide_the_good_ones():
    kept = (at(1e-12),)
    found, _ = search(lambda rate, names, steps, seed: 0.1 if rate == pytest.approx(1e-2) else 1.0, kept)
    assert rate_of(found.best) == pytest.approx(1e-2)


def test_no_treatment_is_proposed_on_top_of_itself():
    kept = CATALOGUE["clip-gradient-norm"].fix("", settings={"max_norm": 1.0})
    _, lab = search(lambda rate, names, steps, seed: 1.0, (kept,), also=("clip-gradient-norm",))
    assert {names for _, names, _, _ in lab.trained} == {(), ("clip-gradient-norm",)}


def test_faults_that_hide_each_others_cures_are_treated_together_and_what_is_not_needed_is_dropped():
    needed = {"standardize-input", "weaker-weight-decay"}
    also = (*needed, "lsuv-init", "warm-up")
    found = session_of(lambda rate, names, steps, seed: 0.1 if needed <= set(names) else 1.0, also=also)
    assert needed <= {p.treatment for p in found.kept}
    found.lab.rescan = lambda plan: SimpleNamespace(findings=())
    found.prune()
    assert {p.treatment for p in found.kept} == needed
    assert {o.status for o in found.outcomes.values()} <= {"not-needed"}


def test_what_keeps_a_finding_away_is_not_dropped_though_the_training_is_as_good_without_it():
    found = session_of(lambda *anything: 0.1)
    found.kept = tuple(fits_any(name).propose(None, None)[0] for name in ("warm-up", "lsuv-init"))
    ill = SimpleNamespace(findings=(SimpleNamespace(code="INIT001", severity="warning"),))
    found.lab.rescan = lambda plan: SimpleNamespace(findings=()) if "lsuv-init" in {p.treatment for p in plan} else ill
    found.prune()
    assert [p.treatment for p in found.kept] == ["lsuv-init"]


def test_a_training_that_begins_to_learn_and_collapses_is_searched():
    base = SimpleNamespace(measurement=measurement(optimizer=optimizer(lr=RATE)), findings=())
    assert RepairSession(made_up(lambda rate, names, steps, seed: 0.7), base).need() == "none"
    assert RepairSession(made_up(lambda rate, names, steps, seed: 0.7 if steps <= 100 else 1.0), base).need() == "everything"


@pytest.mark.parametrize(("best", "found"), [(0.2, (0.1 * RATE,)), (0.6, ())])
def test_a_training_that_does_not_come_far_gets_another_rate_where_the_scan_hints_at_it(best, found):
    """And only if it trains with it; nothing else is tried."""
    hint = SimpleNamespace(severity="info", code="OPT005", remedies=(SimpleNamespace(name="lower-learning-rate"),))
    base = SimpleNamespace(measurement=measurement(optimizer=optimizer(lr=RATE)), findings=(hint,))
    lab = made_up(lambda rate, names, steps, seed: best if rate == pytest.approx(0.1 * RATE) else 0.7, also=("lsuv-init",))
    session = RepairSession(lab, base)
    assert session.need() == "rate"
    session._in_general()
    assert tuple(p.settings["lr"] for p in session.kept) == pytest.approx(found)
    assert not any("lsuv-init" in names for _, names, _, _ in lab.trained)
    base.findings = ()
    assert RepairSession(lab, base).need() == "none"


def test_rates_are_tried_around_the_usual_one_of_the_optimizer():
    for kind, usual in ((optimizer(), 1e-3), (optimizer(name="SGD", adaptive=False), 0.1)):
        assert usual_rates(kind)[0] == usual
    assert usual_rates(optimizer(name="SGD", adaptive=False, momentum=0.9))[0] == 0.01
    assert usual_rates(optimizer(name="Own", adaptive=False)) == ()
    adam = CATALOGUE["adaptive-optimizer"].fix("", settings={"lr": 0.5})
    assert usual_rates(SGD, (adam,)) == usual_rates(optimizer())


SGD = optimizer(name="SGD", adaptive=False, lr=RATE)


def with_adam(losses, attentions=(), **more):
    return search(losses, measured=SimpleNamespace(optimizer=SGD, attentions=attentions, parameters=()), unsafe=True, **more)


def first_tried(lab):
    return next(names for rate, names, _, _ in lab.trained if rate != RATE or names)


def losses_with_adam(rate, names, steps, seed):
    return 0.1 if "adaptive-optimizer" in names and rate == pytest.approx(0.3 * ADAPTIVE_RATE) else 1.0


def test_adam_takes_the_place_of_sgd_when_no_rate_helps_and_only_where_that_is_allowed(monkeypatch):
    also = {"adaptive-optimizer": CATALOGUE["adaptive-optimizer"]}
    monkeypatch.setattr("tests.repair.test_search.fits_any", also.__getitem__)
    found, lab = with_adam(losses_with_adam, also=also)
    assert [(p.treatment, p.settings["lr"]) for p in found.best] == [("adaptive-optimizer", pytest.approx(3e-4))]
    assert first_tried(lab) == ()  # but another rate
    _, lab = with_adam(losses_with_adam, attentions=("one",), also=also)
    assert first_tried(lab) == ("adaptive-optimizer",)  # since attention hardly learns with SGD
    lab = made_up(losses_with_adam, also=also)
    RemedySearch(lab, SimpleNamespace(optimizer=SGD, attentions=(), parameters=()), 1.0, ()).run()
    assert not any(names for _, names, _, _ in lab.trained)


def test_later_rounds_build_on_the_optimizer_that_did_better(monkeypatch):
    def losses(rate, names, steps, seed):
        return 1.0 if "adaptive-optimizer" not in names else 0.1 if "lsuv-init" in names and rate < 5e-4 else 0.92

    fits = {"adaptive-optimizer": CATALOGUE["adaptive-optimizer"], "lsuv-init": fits_any("lsuv-init")}
    monkeypatch.setattr("tests.repair.test_search.fits_any", fits.__getitem__)
    found, _ = with_adam(losses, also=fits)
    assert {p.treatment for p in found.best} == {"adaptive-optimizer", "lsuv-init"} and rate_of(found.best) < 5e-4


def test_time_that_is_up_leaves_the_best_so_far():
    found, lab = search(lambda rate, names, steps, seed: 0.95 if rate < RATE else 1.0, most=14)
    assert len(lab.trained) == 14 and found.steps == 0
    assert found.best == () and found.relative == 1.0


def test_a_plan_trains_after_the_steps_that_both_seeds_need():
    lab = made_up(lambda rate, names, steps, seed: 0.2 + 0.5 * seed)
    assert steps_to_train(lab, (), 1.0) == 0
    lab.losses = lambda rate, names, steps, seed: WELL
    assert steps_to_train(lab, (), 1.0) == lab.options.steps


def test_another_search_and_its_proof_use_no_seed_of_the_first():
    lab = made_up(None)
    used = {*lab.seeds, *range(PROOF_SEED, PROOF_SEED + lab.options.seeds)}
    lab.reseed()
    assert used.isdisjoint({*lab.seeds, *range(lab.proof_seed, lab.proof_seed + lab.options.seeds)})


def test_a_rate_that_leaves_the_plateau_late_is_found_though_what_does_not_move_has_a_lower_loss():
    def losses(rate, names, steps, seed):
        if rate > 0.05:
            return 2.0
        return 0.3 if rate == pytest.approx(0.01) and steps > 250 else 1.0 + rate

    found, lab = search(losses)
    assert rate_of(found.best) == pytest.approx(0.01) and found.steps == PATIENCE * lab.options.steps


def session_of(losses, **more):
    """Of a workload whose probe stalled, after a first search."""
    base = SimpleNamespace(measurement=measurement(probe=stalled(), optimizer=optimizer(lr=RATE)))
    found = RepairSession(made_up(losses, **more), base)
    found._in_general()
    return found


def test_what_trains_in_the_search_and_not_in_the_proof_is_searched_again_on_other_seeds():
    def losses(rate, names, steps, seed):
        lucky = seed in SEARCH_SEEDS and rate == pytest.approx(0.01)
        return 0.1 if lucky or (rate == pytest.approx(1e-4) and seed > 100) else 1.0

    found = session_of(losses)
    assert rate_of(found.kept) == pytest.approx(0.01)
    assert found.again() and rate_of(found.kept) == pytest.approx(1e-4)


@pytest.mark.parametrize("losses", [lambda rate, *rest: 0.1 if rate > RATE else 1.0, lambda *anything: 1.0])
def test_there_is_no_second_search_when_the_first_one_holds_or_found_nothing(losses):
    found = session_of(losses)
    trained = len(found.lab.trained)
    assert not found.again()
    assert len(found.lab.trained) - trained in (0, found.lab.options.seeds)


def test_what_is_best_in_the_end_is_kept_when_nothing_trains_well():
    def losses(rate, names, steps, seed):
        slow_but_sure = rate == pytest.approx(0.01) and steps > 250
        return 0.6 if slow_but_sure else 0.93 + abs(rate - 1e-4)

    found, lab = search(losses)
    assert rate_of(found.best) == pytest.approx(0.01) and found.steps == 0 and found.horizon == PATIENCE * lab.options.steps


def test_a_rate_with_which_nothing_begins_to_learn_is_left_to_the_search():
    """No scan is spent on it; the search begins with it."""
    base = SimpleNamespace(measurement=measurement(optimizer=optimizer(lr=RATE), probe=stalled()), findings=())
    lab = made_up(lambda rate, names, steps, seed: 0.1 if rate == pytest.approx(2e-5) and steps > 100 else 1.0)
    session = RepairSession(lab, base)
    session.lab.rescan = None
    assert session._attempt(at(2e-5)) == set() and session.proposed == [2e-5] and session.kept == ()
    session._in_general()
    assert rate_of(session.kept) == pytest.approx(2e-5)
    assert not any(o.status == "not-verified" for o in session.outcomes.values())  # it is kept, and told once


def test_a_later_treatment_of_the_same_layers_takes_the_place_of_an_earlier_one():
    session = RepairSession(made_up(lambda *anything: 1.0), SimpleNamespace(measurement=None))
    loose, tight = (CATALOGUE["clip-gradient-norm"].fix("", settings={"max_norm": x}) for x in (1.0, 0.1))
    session.kept = (at(1e-2), loose)
    assert session._with(tight) == (at(1e-2), tight)


def test_what_was_spared_for_something_that_does_not_hold_is_tried_after_all():
    """Two remedies of one finding: the first one is refuted in the proof, the second one was never tried."""
    ill = SimpleNamespace(code="OPT005", severity="warning", cause=None, remedies=())
    base = SimpleNamespace(measurement=measurement(optimizer=optimizer(lr=RATE)), findings=(ill,))
    session = RepairSession(made_up(lambda rate, names, steps, seed: 0.1 if rate < RATE else 0.4), base)
    session.lab.rescan = lambda plan, codes=None: SimpleNamespace(findings=(), measurement=base.measurement)
    first, second = (replace(p, findings=("OPT005",)) for p in (CATALOGUE["warm-up"].fix(""), at(0.1 * RATE)))
    session._note(Outcome(second, "not-needed", SPARED))
    assert not session.second_choice()  # nothing was refuted
    session.kept = (first,)
    session.drop(first, "worse", "on fresh seeds the training loss is worse with it")
    session._by_findings = lambda: session._try_all([first, second], {"OPT005"})
    assert session.second_choice() and session.kept == (second,)
    assert {o.prescription.treatment for o in session.outcomes.values()} == {"warm-up"}


def test_a_rate_that_was_left_to_a_search_which_came_to_nothing_is_kept_where_it_cures():
    """Nothing learns, but with it the training no longer breaks up."""
    ill = SimpleNamespace(code="OPT001", severity="error", cause=None, remedies=())
    base = SimpleNamespace(measurement=measurement(optimizer=optimizer(lr=RATE), probe=stalled()), findings=(ill,))
    session = RepairSession(made_up(lambda rate, names, steps, seed: 1.0 if rate < 1e-5 else float("inf")), base)
    session.lab.rescan = lambda plan, codes=None: SimpleNamespace(findings=() if plan else (ill,), measurement=base.measurement)
    low = replace(at(1e-6), findings=("OPT001",))
    assert session._attempt(low) == set() and session.outcomes[signature([low])].reason == PUT_OFF
    session.searched = True
    session._by_findings = lambda: session._try_all([low], {"OPT001"})
    assert session.second_choice() and session.kept == (low,) and not session.outcomes


@pytest.mark.parametrize("hopeful", [True, False])
def test_what_is_asked_again_and_comes_to_nothing_is_still_told(hopeful):
    base = SimpleNamespace(measurement=measurement(optimizer=optimizer(lr=RATE), probe=stalled()), findings=())
    session, low = RepairSession(made_up(lambda *anything: 1.0), base), replace(at(1e-6), findings=("OPT001",))
    session._note(Outcome(low, "not-verified", PUT_OFF))
    session.searched, session.hopeful, asked = True, hopeful, []
    session._by_findings = lambda: asked.append(1)
    assert not session.second_choice() and bool(asked) is not hopeful
    assert [o.reason for o in session.outcomes.values()] == [PUT_OFF]
