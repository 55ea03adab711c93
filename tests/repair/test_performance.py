"""How trainings are compared: by the loss where it means the same, else by accuracy or explained variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.definition import changes_loss
from gradcheck.repair.rescan import compare
from gradcheck.training.result import Result
from gradcheck.training.skill import RelativeScore, skill
from gradcheck.types.fix import Fix
from gradcheck.types.training import Run


def outputs(values):
    """A model that answers each batch with given values, whatever the input."""

    class Fixed(nn.Module):
        def forward(self, x):
            return values

    return Fixed()


def result(losses, *, comparable=True, ended="done", of=None):
    return Result(Run("probe", tuple(losses), ended=ended), comparable, of)


def test_accuracy_is_that_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 5, generator=g), torch.randint(0, 5, (40,), generator=g)
    found = skill(outputs(logits), [(torch.zeros(40, 1), labels)])
    assert found.metric == "accuracy"
    assert found.value == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found.chance == pytest.approx(np.bincount(labels.numpy()).max() / 40)


def test_explained_variance_is_that_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    wanted = torch.randn(40, 1, generator=g)
    guess = wanted + 0.3 * torch.randn(40, 1, generator=g)
    found = skill(outputs(guess), [(torch.zeros(40, 1), wanted)])
    assert found.metric == "explained variance" and found.value == pytest.approx(r2_score(wanted, guess))


def test_a_step_tells_what_its_loss_is_given():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 5, generator=g), torch.randint(0, 5, (40,), generator=g)

    def ascent(model, batch):
        return -F.cross_entropy(model(batch[0]), batch[1])

    def two_losses(model, batch):
        return ascent(model, batch) + F.mse_loss(model(batch[0]), batch[0])

    batch = (logits, labels, object())  # as a captured script's
    found = skill(nn.Identity(), [batch], ascent)
    assert found.metric == "accuracy" and found.value == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert skill(nn.Identity(), [batch]) is None and skill(nn.Identity(), [batch], two_losses) is None


@pytest.mark.parametrize(("settings", "same"), [({"maximize": False}, True), ({"lr": 0.1}, True), ({"whole": True}, False)])
def test_a_flipped_sign_of_the_loss_is_another_loss(settings, same):
    assert changes_loss([Fix("flip-sign", "", "loss", "safe", settings)]) is not same


@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_explained_variance_does_not_depend_on_the_scale_of_the_targets(scale):
    g = torch.Generator().manual_seed(0)
    wanted = torch.randn(40, 1, generator=g)
    found = skill(outputs(scale * (wanted + 0.5)), [(torch.zeros(40, 1), scale * wanted)])
    variance = float(((wanted - wanted.mean()) ** 2).mean())
    assert found.value == pytest.approx(1 - 0.25 / variance, rel=1e-4)


@pytest.mark.parametrize("probabilities", [False, True])
def test_binary_outputs_are_read_as_logits_or_as_probabilities(probabilities):
    logits, labels = torch.tensor([[-2.0], [3.0], [0.5], [-0.1]]), torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    found = skill(outputs(torch.sigmoid(logits) if probabilities else logits), [(torch.zeros(4, 1), labels)])
    assert (found.metric, found.value, found.chance) == ("accuracy", 0.75, 0.75)


def test_classes_on_the_second_axis_and_on_the_last():
    labels = torch.tensor([[0, 1, 2], [2, 1, 0]])
    last = nn.functional.one_hot(labels, 4).float()
    for logits in (last, last.movedim(-1, 1)):
        assert skill(outputs(logits), [(torch.zeros(2, 3), labels)]).value == 1.0


@pytest.mark.parametrize("batch", [torch.zeros(4, 1), (torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(4, 1), torch.zeros(4, 7))])
def test_no_skill_without_targets_without_variance_or_of_another_size(batch):
    assert skill(outputs(torch.zeros(4, 2)), [batch]) is None


def test_no_skill_of_outputs_that_are_not_finite():
    assert skill(outputs(torch.full((4, 2), math.nan)), [(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]))]) is None


def test_losses_are_compared_where_they_mean_the_same():
    base, treated = [result([2.3] * 100)] * 3, [result([2.3 - 0.01 * i - 0.001 * s for i in range(100)]) for s in range(3)]
    found = compare(base, treated)
    assert found.metric == "training loss" and found.better and found.difference < 0


def test_another_loss_is_compared_by_skill_and_higher_is_better():
    base = [result([2.0], of=RelativeScore("accuracy", 0.1 + 0.01 * s, 0.1)) for s in range(3)]
    treated = [result([9.0], comparable=False, of=RelativeScore("accuracy", 0.9 + 0.02 * s, 0.1)) for s in range(3)]
    found = compare(base, treated)
    assert (found.metric, found.lower_is_better, found.better) == ("accuracy", False, True)
    assert found.difference == pytest.approx(0.81)


def test_a_loss_that_changed_without_a_skill_is_compared_to_its_own_start():
    base, treated = [result([4.0, 4.0])] * 3, [result([40.0, 10.0], comparable=False)] * 3
    assert compare(base, treated).metric == "loss relative to its start"


def test_relative_is_in_units_of_chance_and_infinite_when_it_diverged():
    assert result([2.0, 1.0]).relative(2.0) == 0.5
    assert math.isinf(result([2.0, math.inf], ended="non-finite").relative(2.0))
    assert result([80.0], comparable=False, of=RelativeScore("accuracy", 0.55, 0.1)).relative(2.0) == pytest.approx(0.5)
