"""The task is told from loss and shapes, and the metrics are those of slow, obvious sums."""

from __future__ import annotations

import builtins
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.errors import ConfigError
from gradcheck.loading.objects import from_objects
from gradcheck.training.skill import Predictions, predictions, require_scikit_learn, scores, task_of


def workload(outputs: int, target: torch.Tensor, loss):
    return from_objects(nn.Linear(4, outputs), [(torch.randn(len(target), 4), target)], loss=loss)


TASKS = [
    ("classification", 3, torch.tensor([0, 1, 2, 0]), F.cross_entropy),
    ("binary", 1, torch.ones(4, 1), F.binary_cross_entropy_with_logits),
    ("multilabel", 3, torch.ones(4, 3), nn.BCEWithLogitsLoss()),
    ("regression", 2, torch.randn(4, 2), F.mse_loss),
]


@pytest.mark.parametrize(("task", "outputs", "target", "loss"), TASKS)
def test_the_task_is_told(task, outputs, target, loss):
    w = workload(outputs, target, loss)
    found = predictions(w.model, w.batches)
    assert task_of(w, found) == task
    assert scores(task, found, 1.0, w)


def test_a_language_model_is_told_and_its_perplexity_is_the_exponential_of_its_loss():
    tokens = torch.randint(7, (4, 5))
    w = from_objects(nn.Embedding(7, 7), [(tokens, tokens)], loss=lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()))
    output = torch.randn(4, 7, 5)
    assert task_of(w, Predictions(output, tokens)) == "language"
    known = scores("language", Predictions(output, tokens), 2.0, w)
    assert known["perplexity"] == pytest.approx(math.exp(2))
    assert known["accuracy"] == pytest.approx((output.argmax(1) == tokens).float().mean().item())


def test_a_step_of_the_users_own_leaves_the_loss_only():
    w = from_objects(nn.Linear(4, 2), [torch.randn(3, 4)], training_step=lambda m, x: m(x).sum())
    assert task_of(w, None) == "other" and scores("other", Predictions(torch.zeros(1), torch.zeros(1)), 0.0, w) == {}


def test_classification_scores_by_hand():
    target, guess = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 2])
    w = workload(3, target, F.cross_entropy)
    known = scores("classification", Predictions(F.one_hot(guess, 3).float(), target), 1.0, w)
    f1 = {0: 2 * 1 / (2 * 1 + 1 + 1), 1: 2 * 2 / (2 * 2 + 1 + 1), 2: 1.0}  # 2 TP / (2 TP + FP + FN)
    assert known["accuracy"] == pytest.approx(4 / 6)
    assert {c: known[f"F1 of class {c}"] for c in f1} == pytest.approx(f1)
    assert known["F1"] == pytest.approx(sum(f1.values()) / 3)


def test_regression_scores_by_hand():
    target, output = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.5], [2.0], [3.0]])
    known = scores("regression", Predictions(output, target), 0.0, workload(1, target, F.mse_loss))
    mean = target.mean()
    assert known["R2"] == pytest.approx(1 - ((output - target) ** 2).sum().item() / ((target - mean) ** 2).sum().item())
    assert known["MAE"] == pytest.approx(0.5)


def test_outputs_that_are_not_finite_have_no_scores():
    target = torch.tensor([[1.0], [2.0]])
    assert scores("regression", Predictions(torch.tensor([[math.nan], [1.0]]), target), 0.0, workload(1, target, F.mse_loss)) == {}


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "sklearn":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match="scikit-learn") as error:
        require_scikit_learn()
    assert "gradcheck[trial]" in error.value.hint
