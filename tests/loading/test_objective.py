"""Losses that are inferred, targets that are invented, and how batches are taken apart."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading.infer import infer_loss, invent_targets, next_tokens, range_of
from gradcheck.loading.objects import from_objects
from gradcheck.workload.step import as_scalar, first_tensor, own_loss_of, split

N, C = 8, 5
SCORES = torch.randn(N, C, requires_grad=True)
LABELS = torch.randint(C, (N,))
BITS = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
ONE = torch.randn(N, 1, requires_grad=True)
IMAGE = torch.randn(N, C, 6, 6, requires_grad=True)
TOKENS = torch.randn(N, 7, C, requires_grad=True)
PIXELS, WORDS = torch.randint(C, (N, 6, 6)), torch.randint(C, (N, 7))

INFERRED = {
    "classes": (SCORES, LABELS, lambda: F.cross_entropy(SCORES, LABELS)),
    "classes in a column": (SCORES, LABELS[:, None], lambda: F.cross_entropy(SCORES, LABELS)),
    "int32 classes": (SCORES, LABELS.int(), lambda: F.cross_entropy(SCORES, LABELS)),
    "pixels": (IMAGE, PIXELS, lambda: F.cross_entropy(IMAGE, PIXELS)),
    "words": (TOKENS, WORDS, lambda: F.cross_entropy(TOKENS.flatten(0, 1), WORDS.flatten())),
    "one hot": (SCORES, F.one_hot(LABELS, C).float(), lambda: F.cross_entropy(SCORES, LABELS)),
    "log-probabilities": (SCORES.log_softmax(1), LABELS, lambda: F.cross_entropy(SCORES, LABELS)),
    "probabilities": (SCORES.softmax(1), LABELS, lambda: F.cross_entropy(SCORES, LABELS)),
    "log-probabilities of words": (TOKENS.log_softmax(-1), WORDS, lambda: F.cross_entropy(TOKENS.flatten(0, 1), WORDS.flatten())),
    "bits as floats": (ONE, BITS[:, None].float(), lambda: F.binary_cross_entropy_with_logits(ONE, BITS[:, None].float())),
    "bits as integers": (ONE, BITS, lambda: F.binary_cross_entropy_with_logits(ONE, BITS[:, None].float())),
    "bits as booleans": (ONE[:, 0], BITS.bool(), lambda: F.binary_cross_entropy_with_logits(ONE[:, 0], BITS.float())),
    "bits behind a sigmoid": (ONE.sigmoid().view(-1), BITS, lambda: F.binary_cross_entropy_with_logits(ONE[:, 0], BITS.float())),
    "several labels": (SCORES, (SCORES > 0).int(), lambda: F.binary_cross_entropy_with_logits(SCORES, (SCORES > 0).float())),
    "numbers": (SCORES, SCORES.detach() + 1, lambda: torch.tensor(1.0)),
    "numbers without the last axis": (ONE, ONE.detach()[:, 0] + 1, lambda: torch.tensor(1.0)),
    "counts": (ONE, torch.full((N,), 3), lambda: F.mse_loss(ONE, torch.full((N, 1), 3.0))),
}


@pytest.mark.parametrize(("output", "target", "expected"), INFERRED.values(), ids=INFERRED.keys())
def test_the_loss_fits_output_and_target(output: torch.Tensor, target: torch.Tensor, expected: Any) -> None:
    chosen = infer_loss(output, target)
    assert float(chosen.loss(output, target).detach()) == pytest.approx(float(expected().detach()), rel=1e-4)
    assert str(list(output.shape)) in chosen.why


@pytest.mark.parametrize("target", [torch.randn(N, C + 1), torch.randint(C, (N + 1,)), "labels", torch.randn(N)])
def test_what_does_not_fit_is_an_error(target: Any) -> None:
    with pytest.raises(TargetError, match="no loss can be inferred") as caught:
        infer_loss(SCORES, target)
    assert "--loss" in caught.value.hint


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (SCORES.sigmoid(), "sigmoid"),
        (SCORES.tanh().view(-1), "tanh"),
        (SCORES.relu()[:, :1].squeeze(), "positive"),
        (SCORES.softmax(1).T, "probabilities"),
        (SCORES.sigmoid() * 2, "any"),
        (SCORES.detach(), "any"),
    ],
)
def test_the_last_operation_says_what_an_output_can_be(output: torch.Tensor, kind: str) -> None:
    assert range_of(output) == kind


class TestInventedTargets:
    def invent(self, output: torch.Tensor, x: torch.Tensor, given: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = invent_targets(output, (x,), given)
        assert chosen.targets is not None
        target = chosen.targets(output.detach(), torch.Generator().manual_seed(0))
        return target, chosen.loss(output, target)

    def test_scores_get_random_classes(self) -> None:
        target, loss = self.invent(SCORES, torch.randn(N, 3))
        assert target.dtype == torch.int64 and target.shape == (N,) and loss.requires_grad

    def test_numbers_get_random_numbers_that_they_can_reach(self) -> None:
        for output, low, high in ((IMAGE, -9, 9), (IMAGE.tanh(), -1, 1), (IMAGE.relu(), 0, 9), (ONE, -9, 9), (SCORES.sigmoid(), 0, 1)):
            target, loss = self.invent(output, torch.randn(N, 3))
            assert target.shape == output.shape and low <= float(target.min()) and float(target.max()) <= high and loss.ndim == 0

    def test_a_language_model_gets_the_next_tokens(self) -> None:
        target, loss = self.invent(TOKENS, WORDS)
        assert torch.equal(target, next_tokens(WORDS)) and torch.equal(target[:, :-1], WORDS[:, 1:])
        assert float(loss) == pytest.approx(float(F.cross_entropy(TOKENS[:, :-1].flatten(0, 1), WORDS[:, 1:].flatten())), rel=1e-5)

    def test_an_autoencoder_gets_its_input_when_the_data_are_real(self) -> None:
        x = torch.randn(N, C, 6, 6)
        assert torch.equal(self.invent(IMAGE, x, given=True)[0], x)
        assert not torch.equal(self.invent(IMAGE, x, given=False)[0], x)

    def test_they_are_fixed_for_each_batch_and_differ_between_batches_and_seeds(self) -> None:
        model = nn.Linear(4, 3)
        first, again, other = (from_objects(model, [torch.ones(32, 4), torch.ones(32, 4)], seed=s).batches for s in (0, 0, 1))
        assert torch.equal(first[0][1], again[0][1])
        assert not torch.equal(first[0][1], first[1][1]) and not torch.equal(first[0][1], other[0][1])


class Takes(nn.Module):
    """forward with the given signature."""

    def __init__(self, signature: str) -> None:
        super().__init__()
        space: dict[str, Any] = {}
        exec(f"def forward({signature}): pass", space)
        self.forward = space["forward"]


a, b, c, y = (torch.full((2,), float(i)) for i in range(4))


@pytest.mark.parametrize(
    ("signature", "batch", "own_loss", "inputs", "target"),
    [
        ("x", a, False, (a,), None),
        ("x", (a, y), False, (a,), y),
        ("x", [a, y], False, (a,), y),
        ("x", (a,), False, (a,), None),
        ("x1, x2", (a, b, y), False, (a, b), y),
        ("x1, x2", ((a, b), y), False, (a, b), y),
        ("pair", ((a, b), y), False, ((a, b),), y),
        ("x1, x2", (a, b), False, (a, b), None),
        ("x, mask=None", (a, b, y), False, (a, b), y),
        ("x, mask=None", (a, y), False, (a,), y),
        ("x", (a, b, c), False, (a,), (b, c)),
        ("x, targets=None", (a, y), False, (a,), y),
        ("x, targets=None", (a, y), True, (a, y), y),
        ("x, target", (a, y), False, (a, y), None),
        ("x, z", {"x": a, "z": b, "y": y}, False, {"x": a, "z": b}, y),
        ("x", {"x": a, "unused": b, "label": y}, False, {"x": a}, y),
        ("ids, labels=None", {"ids": a, "labels": y}, True, {"ids": a, "labels": y}, y),
        ("ids, labels=None", {"ids": a, "labels": y}, False, {"ids": a}, y),
        ("image", {"inputs": a, "targets": y}, False, (a,), y),
        ("q", {"other": b, "x": a, "y": y}, False, (a,), y),
        ("batch", {"u": a, "v": b}, False, ({"u": a, "v": b},), None),
        ("*args, **kwargs", {"u": a, "y": y}, False, {"u": a}, y),
        ("u, v", ({"u": a, "v": b}, y), False, {"u": a, "v": b}, y),
    ],
)
def test_a_batch_is_taken_apart_as_the_forward_method_wants(signature: str, batch: Any, own_loss: bool, inputs: Any, target: Any) -> None:
    found = split(batch, Takes(signature), own_loss=own_loss)
    assert repr(found) == repr((inputs, target))


def test_the_prediction_in_an_output() -> None:
    class Named:
        logits = b

    assert first_tensor(a) is a
    assert first_tensor((torch.tensor([1]), a, b)) is a
    assert first_tensor({"aux": a, "out": b}) is b
    assert first_tensor(Named()) is b
    assert first_tensor([{"x": None}, (None, a)]) is a
    with pytest.raises(TargetError, match="without a floating-point tensor"):
        first_tensor(("text", torch.tensor([1])))


def test_the_loss_in_an_output() -> None:
    loss = torch.tensor(2.0)
    assert own_loss_of(loss) is loss and own_loss_of((a, loss)) is loss
    assert float(own_loss_of({"loss": loss, "logits": a})) == 2 and float(own_loss_of({"box": loss, "class": loss})) == 4  # type: ignore[arg-type]
    assert own_loss_of(a) is None and own_loss_of({"logits": a, "x": loss}) is None and own_loss_of((a, None)) is None
    assert as_scalar(torch.tensor([[3.0]])).shape == ()
    with pytest.raises(TargetError, match="scalar"):
        as_scalar(a)


@pytest.mark.parametrize(("large", "fixed", "rows"), [(False, 0, [8]), (True, 0, [2]), (True, 8, [2, 8])])
def test_a_large_model_is_tried_on_few_samples_where_it_takes_them(monkeypatch: Any, large: bool, fixed: int, rows: list[int]) -> None:
    class Net(nn.Linear):
        seen: ClassVar[list[int]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(len(x))
            return super().forward(x.view(fixed or len(x), 4))

    if large:
        monkeypatch.setattr("gradcheck.loading.objective.LARGE", 1)
    from_objects(Net(4, 3), [(torch.randn(8, 4), torch.randint(3, (8,)))] * 2, loss=F.cross_entropy)
    assert Net.seen == rows
