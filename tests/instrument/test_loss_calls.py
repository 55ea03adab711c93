"""Levels of loss functions: what the best constant prediction costs, and what the best there is does."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch.nn import functional as F

from gradcheck.instrument.loss_calls import chance_level, facts, floor_level, read, reduction_of, seen

SOFT = torch.softmax(3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), 1)
DENSE = torch.softmax(torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)), 1)
GREY = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("target", "smoothing"),
    [(SOFT, 0.0), (SOFT, 0.3), (DENSE, 0.0), (SOFT[0], 0.1), (torch.arange(4), 0.9), (torch.arange(4), 0.0)],
)
def test_the_floor_of_cross_entropy_is_that_of_a_prediction_of_its_targets(target, smoothing):
    shares = F.one_hot(target, 4).float() if not target.is_floating_point() else target
    axis = 0 if shares.dim() == 1 else 1
    best = torch.log((shares * (1 - smoothing) + smoothing / 4).clamp_min(1e-30))
    expected = F.cross_entropy(best, target, label_smoothing=smoothing).item()
    assert floor_level("cross_entropy", 4, [target], {"label_smoothing": smoothing}) == pytest.approx(expected, abs=1e-5)
    assert best.logsumexp(axis).abs().max() < 1e-5


def test_the_floor_of_binary_cross_entropy_is_the_entropy_of_its_targets():
    expected = F.binary_cross_entropy(GREY, GREY).item()
    assert floor_level("binary_cross_entropy_with_logits", None, [GREY], {}) == pytest.approx(expected, abs=1e-6)
    assert floor_level("binary_cross_entropy", None, [(GREY > 0.5).float()], {}) == 0.0


@pytest.mark.parametrize("options", [{"reduction": "sum"}, {"weight": torch.ones(4)}, {"pos_weight": torch.ones(5)}])
def test_where_it_is_not_known_it_is_zero(options):
    assert floor_level("cross_entropy", 4, [SOFT], options) == 0.0
    assert floor_level("binary_cross_entropy", None, [GREY], options) == 0.0
    assert floor_level("mse_loss", None, [GREY], {}) == 0.0


@pytest.mark.parametrize(("target", "smoothing"), [(SOFT, 0.0), (DENSE, 0.2), (torch.arange(4).repeat(20) // 2, 0.3)])
def test_chance_is_the_best_constant_prediction(target, smoothing):
    shares = F.one_hot(target, 4).float() if not target.is_floating_point() else target
    mean = shares.movedim(1, -1).reshape(-1, 4).mean(0) * (1 - smoothing) + smoothing / 4
    best = mean.clamp_min(1e-30).log().reshape(1, 4, *(1,) * (shares.dim() - 2)).expand(shares.shape)
    expected = F.cross_entropy(best, target, label_smoothing=smoothing).item()
    assert chance_level("cross_entropy", 4, [target], {"label_smoothing": smoothing})[0] == pytest.approx(expected, abs=1e-5)


def test_chance_counts_positives_as_their_weight_does():
    target, weight = (torch.arange(200) % 10 == 0).float(), torch.tensor(9.0)
    costs = [F.binary_cross_entropy_with_logits(torch.full((200,), z), target, pos_weight=weight).item() for z in (-1.0, 0.0, 1.0)]
    chance, uniform = chance_level("binary_cross_entropy_with_logits", None, [target], {"pos_weight": weight})
    assert chance == pytest.approx(min(costs), abs=1e-5) and uniform == pytest.approx(costs[1], abs=1e-5)


def test_a_large_vocabulary_takes_little_memory():
    """A square matrix of GPT-2's vocabulary takes 20 GB."""
    words, smoothing = 500_000, 0.1
    rest = smoothing / words
    expected = -(1 - smoothing + rest) * math.log(1 - smoothing + rest) - (words - 1) * rest * math.log(rest)
    assert floor_level("cross_entropy", words, [], {"label_smoothing": smoothing}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"size_average": False}, "sum"),
        ({"size_average": True}, "mean"),
        ({"reduce": False}, "none"),
        ({"size_average": False, "reduce": False}, "none"),
        ({"reduction": "sum"}, "sum"),
        ({}, "mean"),
    ],
)
def test_a_reduction_is_read_as_torch_reads_it(kwargs, expected):
    assert reduction_of(F.binary_cross_entropy, (GREY, GREY), kwargs) == expected
    with pytest.warns(UserWarning) if len(kwargs) > ("reduction" in kwargs) else contextlib.nullcontext():
        value = F.binary_cross_entropy(GREY, GREY, **kwargs)
    assert torch.equal(value, F.binary_cross_entropy(GREY, GREY, reduction=expected))


def test_options_given_by_position_are_known():
    labels = torch.tensor([0, 2, 1, 2, 0, 0])
    call = seen(F.cross_entropy, (SOFT, labels, torch.ones(4), None, 2), {}, None)
    assert call is not None
    assert call.options["ignore_index"] == 2
    assert torch.equal(call.options["weight"], torch.ones(4))
    assert reduction_of(F.mse_loss, (GREY, GREY, False), {}) == "sum"
    assert reduction_of(F.huber_loss, (GREY, GREY, "sum"), {}) == "sum"


@pytest.mark.parametrize(
    ("targets", "more", "blanks"),
    [
        ([[1, 2, 3], [1, 4, 0]], {}, 0),  # padded
        ([[0, 2, 3], [1, 4, 0]], {}, 1),
        ([1, 2, 3, 1, 0], {}, 1),  # one after another
        ([[0, 2, 3], [1, 4, 0]], {"blank": 4}, 1),
        ([[0, 2, 3], [1, 3, 0]], {"blank": 4}, 0),
    ],
)
def test_labels_of_ctc_that_are_its_blank(targets, more, blanks):
    probabilities = torch.randn(9, 2, 5).log_softmax(-1)
    call = seen(F.ctc_loss, (probabilities, torch.tensor(targets), torch.tensor([9, 9]), torch.tensor([3, 2])), more, None)
    assert call is not None
    read([call])
    found = facts(call, None, None, None)
    assert (found.out_of_range, found.target_kind) == (blanks, "none")
