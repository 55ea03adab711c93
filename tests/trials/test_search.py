"""The search for strengths: it finds good ones, goes on from what is stored, and shares the work."""

from __future__ import annotations

import builtins
import sys

import optuna
import pytest

import gradcheck
from gradcheck.errors import ConfigError
from gradcheck.remedies.definition import Strength
from gradcheck.trials.run import require_search
from gradcheck.trials.search import grid
from tests.trials.problems import sparse_linear

LOG, LINEAR = Strength("a", 1.0, 0.01, 100.0), Strength("b", 0.5, 0.0, 1.0, log=False)


def searched(**more):
    p = sparse_linear()
    options = {"steps": 40, "seeds": 3, "budget": 60.0, "workers": 1, "remedies": ["l1"], "search": "random", "trials": 4} | more
    return gradcheck.trial(p.model, p.data, loss=p.loss, optimizer=p.optimizer, val_data=p.val, **options)


def test_a_grid_is_even_on_the_scale_of_each_strength():
    assert grid([LOG], 5)["a"] == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0])
    both = grid([LOG, LINEAR], 9)
    assert both["a"] == pytest.approx([0.01, 1.0, 100.0]) and both["b"] == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("kind", ["grid", "random", "bayes"])
def test_the_best_strength_enters_the_contest(kind):
    level = optuna.logging.get_verbosity()
    result = searched(search=kind)
    assert optuna.logging.get_verbosity() == level
    known = [p for p in result.searched if p.value is not None]
    assert len(result.searched) == 4 and all(0.01 <= p.settings["strength"] <= 30 * 1.001 for p in result.searched)
    best = min(known, key=lambda p: p.value)
    (entry,) = result.entries
    assert entry.prescriptions[0].settings["strength"] == pytest.approx(best.settings["strength"])


def test_a_stored_study_is_gone_on_with(tmp_path):
    study = str(tmp_path / "study.log")
    first = searched(study=study, trials=2)
    more = searched(study=study, trials=3, steps=None)
    assert [p.settings for p in more.searched[:2]] == [p.settings for p in first.searched] and len(more.searched) == 3
    assert more.steps == 40
    with pytest.raises(ConfigError, match="the study's runs have 40 steps, not 50"):
        searched(study=study, steps=50)


def test_workers_share_one_study():
    result = searched(workers=2, trials=4, remedies=["l1", "l2"])
    assert {p.remedy for p in result.searched} == {"l1", "l2"}
    assert all(4 <= sum(p.remedy == name for p in result.searched) <= 5 for name in ("l1", "l2"))


def test_a_study_that_cannot_be_used_is_one_clear_error(tmp_path):
    (tmp_path / "no.log").write_text("this is not a journal\n")
    with pytest.raises(ConfigError, match="cannot be used"):
        searched(study=str(tmp_path / "no.log"))
    with pytest.raises(ConfigError, match="cannot be used"):
        searched(study=str(tmp_path / "nowhere" / "x.log"))


def test_without_optuna_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "gradcheck.trials.search")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match="optuna") as error:
        require_search()
    assert "gradcheck[search]" in error.value.hint
