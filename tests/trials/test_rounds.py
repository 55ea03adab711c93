"""Rounds, finalists and conclusions, on runs that are drawn instead of trained: what is claimed is true, and chance is not claimed."""

from __future__ import annotations

import math
import random
import time
from types import SimpleNamespace

import pytest

from gradcheck.training.pool import WorkerPool
from gradcheck.training.result import Result
from gradcheck.trials.plan import Plan, Planner
from gradcheck.trials.ranking import base_entry, best_single, entry_of, interactions, ranked, recommendation
from gradcheck.trials.rounds import Tournament, by_turns, combinations, rivals, together
from gradcheck.trials.run import concluded
from gradcheck.trials.standings import Candidate, ComparisonMetric, compare, gain, is_undecided
from gradcheck.types.fix import Effect, Fix
from gradcheck.types.training import Run
from gradcheck.workload.treated import Inapplicable

PLAN = Plan(100, 2, 2, 4, 6, 2)
METRIC = ComparisonMetric("validation loss", 0.02, "accuracy")


def fix(name, stage="regularization"):
    return Fix(name, f"use {name}", stage, "safe")


class DrawnLab:
    """A lab whose runs are draws: the seed's own loss, times a factor for each remedy, times noise of 5 %."""

    def __init__(self, effects, dice, spread=0.05, lost=()):
        self.effects, self.dice, self.spread, self.lost = effects, dice, spread, lost
        self.splitter = SimpleNamespace(folds=0)
        self.calls = []

    def run(self, seed, fixes, steps, deadline=None, watch=None):
        names = [p.treatment for p in fixes]
        self.calls.append((seed, *names))
        if "broken" in names:
            raise Inapplicable("it has no layers")
        if "crash" in names:
            raise ZeroDivisionError("division by zero")
        if (not names and "untreated" in self.lost) or any(n in self.lost for n in names):
            return Result(Run("", (1.0, math.nan), ended="non-finite"), value=math.inf)
        level = math.exp(random.Random(seed).gauss(0, 0.3))
        value = level * math.prod(self.effects.get(n, 1.0) for n in names) * math.exp(self.dice.gauss(0, self.spread))
        known = Run("", (2.0, value), (1.0, 1.0), validated=((2, value),))
        return Result(known, value=value, parts=(value,), checkpoints=((value,),), scores={"accuracy": 0.9})


def tournament_of(lab, names, metric=METRIC, plan=PLAN):
    candidates = [Candidate(n, n, (fix(n),)) for n in names]
    return Tournament(lab, candidates, metric, plan, WorkerPool(lab, 1), time.perf_counter() + 60)


def held(effects, names, seed=0, plan=PLAN, **more):
    tournament = tournament_of(DrawnLab(effects, random.Random(seed), **more), names, plan=plan)
    tournament.run()
    return tournament


def claimed(tournament):
    """Whether any remedy is said to help."""
    return any(e.status == "helps" for e in concluded(tournament, "regression", "done").entries)


def test_a_remedy_that_halves_the_loss_is_recommended():
    result = concluded(held({"good": 0.5}, ["a", "good", "b", "c"]), "regression", "done")
    best = result.entries[0]
    assert (best.name, best.status, best.fresh, best.seeds) == ("good", "helps", True, 6)
    assert (
        result.recommended == "good" and best.effect.high < 0 and best.effect.difference == pytest.approx(-0.5 * best.effect.base, rel=0.2)
    )
    assert result.verdict.startswith("Good lowers validation loss by ")


def test_what_is_noise_is_hardly_ever_claimed():
    """Twelve remedies that do nothing, a hundred times: in at most 5 % of the trials one is said to help, give or take the draw."""
    claims = sum(claimed(held({}, [f"r{i}" for i in range(12)], seed)) for seed in range(100))
    assert claims <= 10


def test_without_the_final_on_fresh_seeds_noise_would_be_claimed():
    """The same trials, judged on the seeds that chose: the check above can fail."""
    claims = 0
    for seed in range(100):
        tournament = held({}, [f"r{i}" for i in range(12)], seed, Plan(100, 3, 0, 1, 3, 0))
        claims += any(compare(c, tournament.base, METRIC, [0, 1, 2]).better for c in tournament.candidates)
    assert claims > 10


def test_a_difference_too_small_to_count_is_no_help():
    metric = ComparisonMetric("validation loss", 0.5, None)
    lab = DrawnLab({"slight": 0.8}, random.Random(0), spread=0.01)
    tournament = tournament_of(lab, ["slight"], metric)
    tournament.run()
    entry = entry_of(tournament, tournament.candidates[0])
    assert entry.effect.better and entry.status == "no-difference"


def test_harm_is_said():
    result = concluded(held({"bad": 2.0}, ["bad"]), "regression", "done")
    assert result.entries[0].status == "worse" and result.recommended == ""
    assert result.verdict.startswith("No difference")


def test_what_cannot_be_applied_and_what_crashes_say_why():
    result = concluded(held({"good": 0.5}, ["broken", "crash", "good"]), "regression", "done")
    assert {(e.name, e.status, e.reason) for e in result.entries[1:]} == {
        ("broken", "inapplicable", "it has no layers"),
        ("crash", "failed", "ZeroDivisionError: division by zero"),
    }


def test_divergence_is_a_result_of_the_remedy():
    result = concluded(held({}, ["wild", "calm"], lost=("wild",)), "regression", "done")
    wild = result.entry("wild")
    assert wild.status == "diverged" and wild.diverged == wild.seeds
    assert wild.text == f"wild diverges in {wild.seeds} of {wild.seeds} seeds"


def test_a_remedy_that_rescues_a_diverging_model_helps():
    result = concluded(held({}, ["rescue"], lost=("untreated",)), "regression", "done")
    assert result.recommended == "rescue" and result.entries[0].status == "helps"
    assert "where the untreated model diverges in 6 of 6 seeds" in result.verdict


def test_screening_and_final_share_no_seed_and_pairs_share_all():
    tournament = held({"good": 0.5}, ["good", "other"])
    seeds = {name: [c[0] for c in tournament.lab.calls if c[1:] == (name,)] for name in ("good", "other")}
    assert seeds["good"] == [0, 1, 2, 3, *tournament.fresh]
    assert set(seeds["good"]) == {c[0] for c in tournament.lab.calls if c[1:] == ()}


def test_two_good_remedies_are_tried_together_and_add_up():
    tournament = held({"one": 0.7, "two": 0.6}, ["one", "two", "idle"])
    result = concluded(tournament, "regression", "done")
    assert result.recommended == "two + one" and result.entries[0].name == "two + one"
    (pair,) = result.interactions
    assert pair.names == ("two", "one") and pair.together == pytest.approx(-0.58, abs=0.25)
    assert [p.treatment for p in result.prescriptions] == ["two", "one"]


def test_a_combination_that_is_no_better_than_its_best_part_is_not_recommended():
    class TrialLab(DrawnLab):
        def run(self, seed, fixes, steps, deadline=None, watch=None):
            return super().run(seed, fixes[:1], steps, deadline, watch)

    lab = TrialLab({"one": 0.5, "two": 0.6}, random.Random(1))
    tournament = tournament_of(lab, ["one", "two"])
    tournament.run()
    result = concluded(tournament, "regression", "done")
    assert result.recommended == "one" and [e.name for e in result.entries] == ["one", "two", "one + two"]
    assert result.interactions[0].verdict == "overlap"


def test_rivals_are_not_combined_and_stages_are_in_order():
    assert rivals("l1", "l2") and rivals("he-init", "orthogonal-init") and not rivals("l1", "dropout")
    team = [Candidate(n, n, (fix(n, s),)) for n, s in (("l1", "regularization"), ("l2", "regularization"), ("x", "initialization"))]
    found = combinations(team, [3.0, 2.0, 1.5])
    assert [c.name for c in found] == ["l1 + x"]
    assert [p.treatment for p in together([team[0], team[2]]).fixes] == ["x", "l1"]
    assert combinations(team, [0.5, 0.2, 0.1]) == []


def test_the_best_strength_of_a_remedy_represents_it():
    weak, strong = Candidate("l1", "l1 0.1", (fix("weak"),)), Candidate("l1", "l1 1", (fix("strong"),), variant=True)
    lab = DrawnLab({"weak": 0.8, "strong": 0.4}, random.Random(0))
    tournament = Tournament(lab, [weak, strong], METRIC, PLAN, WorkerPool(lab, 1), time.perf_counter() + 60)
    tournament.run()
    result = concluded(tournament, "regression", "done")
    assert [e.title for e in result.entries] == ["l1 1"] and result.recommended == "l1"
    assert gain(strong, tournament.base, METRIC) > gain(weak, tournament.base, METRIC)


def test_what_is_there_when_time_is_up_is_ranked():
    lab = DrawnLab({"good": 0.5}, random.Random(0))
    tournament = tournament_of(lab, ["good"])
    tournament.round("first round", tournament.candidates, [0, 1], tournament.deadline)
    result = concluded(tournament, "regression", "interrupted")
    assert result.entries[0].status == "promising" and not result.entries[0].fresh
    assert result.verdict == "Undecided: good looked better, but that may be chance. It was interrupted: what is shown is partial."
    empty = tournament_of(lab, ["late"])
    assert concluded(empty, "regression", "budget").verdict == "Nothing was compared. Time ran out before the end."


def test_a_remedy_whose_losses_mean_something_else_is_judged_by_its_score():
    tournament = held({}, ["replace-loss"])
    entry = entry_of(tournament, tournament.candidates[0])
    assert entry.effect.metric == "accuracy" and not entry.effect.lower_is_better and entry.status == "no-difference"


def ended(difference, *losses, lower_is_better=True):
    effect = SimpleNamespace(difference=difference, lower_is_better=lower_is_better)
    return SimpleNamespace(effect=effect, validation=SimpleNamespace(median=losses))


def test_of_remedies_that_end_as_low_the_one_that_gets_there_soonest_is_recommended():
    late, soon, worse = ended(-1.76, 1.8, 1.8, 0.04), ended(-1.75, 1.8, 0.2, 0.05), ended(-1.5, 0.3, 0.3, 0.3)
    assert best_single([late, soon, worse], 0.03) is soon
    assert best_single([late, soon, worse], 0.001) is late
    assert best_single([], 0.03) is None


def test_scores_are_not_weighed_against_curves_of_losses():
    high = ended(0.3, 2.0, 2.0, lower_is_better=False)
    assert best_single([high, ended(0.1, 0.1, 0.1, lower_is_better=False)], 10.0) is high


def test_entries_are_ranked_by_status_then_effect():
    tournament = held({"a": 0.9, "b": 0.5, "bad": 3.0}, ["bad", "a", "b"], plan=Plan(100, 2, 2, 2, 6, 0))
    entries = [entry_of(tournament, c) for c in tournament.candidates]
    assert [e.name for e in ranked(entries, recommendation(tournament, entries, base_entry(tournament), False))] == ["b", "a", "bad"]
    assert base_entry(tournament).status == "untreated" and interactions(tournament) == ()


def test_other_strengths_are_those_next_to_the_best_one():
    def at(strength, variant=True):
        return Candidate("l1", f"l1 {strength}", (Fix("l1", "l1", "regularization", "safe", {"strength": strength}),), variant=variant)

    tournament = tournament_of(DrawnLab({}, random.Random(0)), [])
    tournament.candidates = [at(0.03, False), *(at(x) for x in (8.0, 0.1, 20.0, 0.003, 1.0, 0.01))]
    assert {c.title for c in tournament.near([tournament.candidates[0]])} == {"l1 0.1", "l1 0.01", "l1 0.003"}


def test_a_slow_machine_gives_up_finalists_rather_than_seeds():
    tournament = tournament_of(DrawnLab({"good": 0.3, "fair": 0.5, "slight": 0.7}, random.Random(0)), ["good", "fair", "slight"])
    real = tournament.round

    def slow(name, *rest):
        real(name, *rest)
        tournament.run_seconds = 60 * 0.9 / 13  # twelve runs are left: six pairs

    tournament.round = slow
    tournament.run()
    assert [c.name for c in tournament.finalists] == ["good"] and tournament.seeds == 6


def test_a_diverged_run_counts_as_the_worst_loss_seen():
    """Seven of eight seeds are better by far, two of them untreated diverge; one is worse by a little: still, that is an effect."""
    base, cured = Candidate("untreated", ""), Candidate("cure", "", (fix("cure"),))
    before = [math.inf, 5.0, 6.0, math.inf, 4.0, 5.0, 0.19, 7.0]
    for seed, loss in enumerate(before):
        base.results[seed] = Result(Run("", (2.0,), validated=((0, 2.0),)), value=loss)
        cured.results[seed] = Result(Run("", (2.0,), validated=((0, 2.0),)), value=0.2 + 0.001 * seed)
    effect = compare(cured, base, METRIC)
    assert effect.better and math.isfinite(effect.low) and -5.5 < effect.difference < -5
    alike = compare(base, base, METRIC)
    assert alike.difference == 0 and not alike.better


def test_every_remedy_enters_once_before_any_at_its_next_strength():
    crowd = [Candidate(name, f"{name} {i}") for name, count in (("l1", 3), ("dropout", 1), ("l2", 2)) for i in range(count)]
    assert [c.title for c in by_turns(crowd)] == ["l1 0", "dropout 0", "l2 0", "l1 1", "l2 1", "l1 2"]


class PacedWard(DrawnLab):
    """A lab whose steps take so many seconds each, on a clock that stands still otherwise."""

    step_seconds = 1e-6
    now = 0.0

    def run(self, seed, fixes, steps, deadline=None, watch=None):
        self.now += self.step_seconds * steps
        return super().run(seed, fixes, steps, deadline, watch)


@pytest.mark.parametrize(("step_seconds", "again"), [(1e-6, True), (1e-4, False)])
def test_runs_that_are_much_faster_than_planned_are_taken_anew_and_longer(step_seconds, again, monkeypatch):
    """Planned for a machine with other work, on one that has none any more; and for the machine as it was."""
    lab = PacedWard({"good": 0.5}, random.Random(0))
    lab.step_seconds = step_seconds
    monkeypatch.setattr(time, "perf_counter", lambda: lab.now)
    tournament = tournament_of(lab, ["good", "a", "b"])
    tournament.planner, tournament.deadline = Planner(3, steps=None), time.perf_counter() + 3
    tournament.plan = tournament.planner.plan(3, 1e-4)
    planned = tournament.plan.steps
    tournament.run()
    assert (tournament.plan.steps > planned) == again
    assert lab.calls.count((0,)) == 1 + again
    assert concluded(tournament, "regression", "done").recommended == "good"


@pytest.mark.parametrize(
    ("low", "difference", "high", "lower_is_better", "undecided"),
    [
        (-0.30, -0.10, 0.05, True, True),
        (-0.05, 0.10, 0.30, False, True),
        (-0.30, -0.10, -0.02, True, False),  # it helps
        (-0.20, -0.10, 0.15, True, False),  # as good as even
        (-0.03, -0.01, 0.01, True, False),  # too little to count
        (-0.05, 0.10, 0.30, True, False),  # to the bad side
        (-math.inf, -math.inf, math.inf, True, False),
    ],
)
def test_what_may_help_but_is_not_proven_is_undecided(low, difference, high, lower_is_better, undecided):
    effect = Effect("loss", 1.0, 1.0 + difference, difference, low, high, 6, high < 0, lower_is_better)
    assert is_undecided(effect, METRIC) == undecided
