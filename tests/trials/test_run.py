"""Trials of small trainings from end to end: right conclusions, nothing left behind, budgets kept."""

from __future__ import annotations

import importlib
import json
import random
import time

import pytest
import torch

import gradcheck
from gradcheck.errors import ConfigError
from gradcheck.remedies.catalogue import ADVICE_ONLY
from gradcheck.saved_run import dumps, load
from gradcheck.types.report import Report
from tests.trials.problems import classes, diverging, sparse_linear

QUICK = {"steps": 100, "seeds": 3, "budget": 60.0, "workers": 1}


def held(problem, **more):
    return gradcheck.trial(
        problem.model, problem.data, loss=problem.loss, optimizer=problem.optimizer, val_data=problem.val, **QUICK | more
    )


@pytest.fixture(scope="module")
def sparse():
    problem = sparse_linear()
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    result = held(problem, remedies=["l1", "l2"])
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items()) and not problem.optimizer.state
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    return result


def test_where_the_truth_is_sparse_l1_beats_l2(sparse):
    assert sparse.recommended.startswith("l1") and sparse.helpful
    l1, l2 = sparse.entry("l1"), sparse.entry("l2")
    assert l1.effect.high < 0 and l1.effect.difference < l2.effect.difference
    assert l1.sparsity > 0.3 and l2.sparsity == 0


def test_the_result_holds_curves_scores_and_words(sparse):
    assert sparse.task == "regression" and sparse.metric == "validation loss" and sparse.ended == "done"
    for entry in (sparse.base, sparse.entry("l1")):
        assert entry.validation.steps[-1] == 100 and entry.training.steps[-1] == 100
        assert all(a <= b <= c for a, b, c in zip(entry.validation.low, entry.validation.median, entry.validation.high, strict=True))
        assert {"R2", "MAE", "generalization gap"} <= {s.metric for s in entry.scores}
        assert entry.step_ms > 0 and entry.gradient_spread >= 1
    assert "lowers validation loss by" in sparse.entry("l1").text and "exactly zero" in sparse.entry("l1").text


def test_the_result_goes_to_json_and_back(sparse, tmp_path):
    facts = json.loads(sparse.to_json(tmp_path / "trial.json"))
    assert facts["entries"][0]["name"] == sparse.entries[0].name
    from tests.literals import measurement

    (tmp_path / "run.json").write_text(dumps(Report("model.py", (), (), (measurement(),), trial=sparse)))
    again = load(tmp_path / "run.json").trial
    assert again is not None and again.recommended == sparse.recommended and again.entry("l1").status == sparse.entry("l1").status


def test_samples_are_held_out_and_said_when_there_are_no_validation_data():
    result = held(classes(), remedies=["early-stopping"], steps=40)
    assert result.samples == (72, 24) and result.task == "classification"
    assert any("another 24 of 96 samples are held out" in a.text for a in result.assumptions)
    assert {"accuracy", "F1", "precision", "recall", "F1 of class 2"} <= {s.metric for s in result.base.scores}


def test_folds_are_held_out_one_after_the_other():
    result = held(classes(90), remedies=["l2"], steps=20, folds=3)
    assert result.base.seeds == 3 and result.samples == (60, 30)


def test_a_diverging_model_is_rescued_by_a_lower_rate():
    result = held(diverging(), remedies=["lower-learning-rate", "label-smoothing"], steps=60)
    assert result.base.diverged == result.base.seeds
    assert result.recommended == "lower-learning-rate" and result.entry("label-smoothing").status == "inapplicable"
    assert "where the untreated model diverges" in result.verdict


def test_a_trial_keeps_its_budget_and_says_that_time_was_up():
    started = time.perf_counter()
    result = held(classes(), steps=None, seeds=None, budget=2.0)
    assert time.perf_counter() - started < 5
    assert result.entries and result.budget == 2.0


def test_an_interrupt_leaves_a_partial_result(monkeypatch):
    jobs = importlib.import_module("gradcheck.trials.lab")
    real, calls = jobs.work, []

    def interrupted(lab, job):
        calls.append(job)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(lab, job)

    monkeypatch.setattr(jobs, "work", interrupted)
    result = held(sparse_linear(), remedies=["l1", "l2"], steps=60)
    assert result.ended == "interrupted" and "It was interrupted" in result.verdict
    assert result.entry("l1").seeds < 3 and result.entry("l1").status in ("promising", "no-difference")


def test_several_processes_find_the_same(sparse):
    again = held(sparse_linear(), remedies=["l1", "l2"], workers=2)
    assert again.entry("l1").effect.difference == pytest.approx(sparse.entry("l1").effect.difference, rel=1e-3)


def test_unknown_remedies_are_one_clear_error():
    with pytest.raises(ConfigError, match="unknown remedy 'drop-out'") as error:
        held(classes(), remedies=["drop-out"])
    assert 'did you mean "dropout"' in error.value.hint
    advice = sorted(ADVICE_ONLY)[0]
    with pytest.raises(ConfigError, match=f"{advice} is advice"):
        held(classes(), remedies=advice)


def test_gradcheck_trial_is_the_function_after_the_package_was_imported():
    importlib.import_module("gradcheck.training.paired")
    assert callable(gradcheck.trial) and gradcheck.trial.__name__ == "trial"
