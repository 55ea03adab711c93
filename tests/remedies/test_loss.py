"""Losses that fit: each rewritten loss is compared with the one that a person would write."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.workload.treated import Inapplicable, treated_copy
from tests.remedies.recipes import classification, measured, net, order, patient, regression, workload


class Hand(nn.Module):
    """A loss of the user's own around one of torch."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.inner(output, target)


def plain(inner: Any) -> Any:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return inner(output, target)

    return loss


def step_of(inner: Any) -> Any:
    def training_step(model: nn.Module, batch: Any) -> torch.Tensor:
        return inner(model(batch[0]), batch[1])

    return training_step


def labels() -> list[Any]:
    return [(x, (y > 0).float()) for x, y in regression()]


CASES = {
    "logits into nll_loss": ("cross_entropy", F.nll_loss, nn.Identity, classification(), 3, F.cross_entropy),
    "probabilities into nll_loss": ("cross_entropy", F.nll_loss, lambda: nn.Softmax(1), classification(), 3, F.cross_entropy),
    "softmax before cross_entropy": ("nll_loss", F.cross_entropy, lambda: nn.Softmax(1), classification(), 3, F.cross_entropy),
    "sigmoid before bce with logits": (
        "binary_cross_entropy",
        F.binary_cross_entropy_with_logits,
        nn.Sigmoid,
        labels(),
        1,
        F.binary_cross_entropy_with_logits,
    ),
}


@pytest.mark.parametrize("wrap", [lambda f: f, Hand, plain, "step"], ids=["torch", "module", "function", "training step"])
@pytest.mark.parametrize("case", CASES)
def test_the_new_loss_is_that_of_the_logits(case: str, wrap: Any) -> None:
    new, wrong, activation, batches, outputs, right = CASES[case]
    body = net(outputs=outputs)
    model = nn.Sequential(body, activation())
    given = {"training_step": step_of(wrong)} if wrap == "step" else {"loss": wrap(wrong)}
    w = workload(model, batches, **given)
    report = measured(w, 6, fast=True)
    finding = next(f for f in report.findings if f.code == "LOSS001")
    (p,) = CATALOGUE["replace-loss"].propose(finding, report.measurement)
    assert p.settings["new"] == new and p.applicability == "unsafe" and p.findings == ("LOSS001",)
    treated = treated_copy(w)
    apply(treated, p)
    treated = treated.copy()
    x, y = batches[0]
    inner = treated.model[0]
    loss = treated.workload.training_step(treated.model, (x, y))
    torch.testing.assert_close(loss, right(inner(x), y), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(q.grad is not None and torch.isfinite(q.grad).all() for q in inner.parameters())
    assert not any(f.code == "LOSS001" and f.severity == "error" for f in measured(treated.workload, 6, fast=True).findings)


def test_unbounded_outputs_get_a_loss_of_logits() -> None:
    for loss in (nn.BCELoss(), plain(F.binary_cross_entropy)):
        w = workload(net(outputs=1), labels(), loss)
        report = measured(w, 6, fast=True)
        finding = next(f for f in report.findings if any(r.name == "replace-loss" for r in f.remedies))
        (p,) = CATALOGUE["replace-loss"].propose(finding, report.measurement)
        treated = patient(net(outputs=1), labels(), loss)
        apply(treated, p)
        x, y = labels()[0]
        value = treated.workload.training_step(treated.model, (x, y))
        torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(treated.model(x), y), rtol=1e-4, atol=1e-5)


def test_a_counterpart_keeps_the_settings() -> None:
    treated = patient(loss=nn.NLLLoss(weight=torch.tensor([1.0, 2.0, 3.0]), ignore_index=1))
    apply(treated, order("replace-loss", old="nll_loss", new="cross_entropy", function="", classes=3))
    loss = treated.workload.loss
    assert isinstance(loss, nn.CrossEntropyLoss)
    assert loss.ignore_index == 1 and loss.weight.tolist() == [1.0, 2.0, 3.0]


def test_classes_on_the_last_axis_are_found() -> None:
    model = nn.Linear(6, 5)
    batches = [(torch.randn(4, 7, 6), torch.randint(5, (4, 7)))]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.nll_loss(output.flatten(0, 1), target.flatten())

    treated = patient(model, batches, loss)
    apply(treated, order("replace-loss", old="nll_loss", new="cross_entropy", function="", classes=5))
    value = treated.workload.training_step(treated.model, batches[0])
    torch.testing.assert_close(value, F.cross_entropy(treated.model(batches[0][0]).flatten(0, 1), batches[0][1].flatten()))


def test_labels_of_another_type_are_cast() -> None:
    batches = [(x, y.float()[:, None]) for x, y in classification()]
    report = measured(workload(batches=batches), 6, fast=True)
    finding = next(f for f in report.findings if f.code == "LOSS002")
    (p,) = CATALOGUE["replace-loss"].propose(finding, report.measurement)
    assert p.settings["target"] == "long"
    treated = patient(batches=batches)
    apply(treated, p)
    x, y = treated.prepare(batches[0])
    assert y.dtype == torch.int64 and y.shape == (16,)
    assert torch.isfinite(treated.workload.training_step(treated.model, (x, y)))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("longer", ["output", "target"])
@pytest.mark.parametrize("kind", ["loss", "step"])
def test_shapes_are_matched(longer: str, kind: str) -> None:
    model = net(outputs=1) if longer == "output" else nn.Sequential(net(outputs=1), nn.Flatten(0))
    batches = [(x, y.squeeze(1) if longer == "output" else y) for x, y in regression()]
    given = {"training_step": step_of(F.mse_loss)} if kind == "step" else {"loss": F.mse_loss}
    w = workload(model, batches, **given)
    report = measured(w, 6, fast=True)
    finding = next(f for f in report.findings if f.code == "LOSS002")
    (p,) = CATALOGUE["match-shapes"].propose(finding, report.measurement)
    assert p.settings == {"operand": longer, "operation": "squeeze", "dim": -1}
    treated = patient(model, batches, **given)
    apply(treated, p)
    x, y = treated.prepare(batches[0])
    value = treated.workload.training_step(treated.model, (x, y))
    torch.testing.assert_close(value, F.mse_loss(treated.model(x).flatten(), y.flatten()))
    assert w.batches[0][1] is not y or longer == "output"


def test_the_sign_of_a_loss_and_of_an_optimizer() -> None:
    def negative(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -F.cross_entropy(output, target)

    for given in ({"loss": negative}, {"training_step": step_of(negative)}):
        w = workload(**given)
        report = measured(w, 10)
        finding = next(f for f in report.findings if f.code == "GRAPH004")
        (p,) = CATALOGUE["flip-sign"].propose(finding, report.measurement)
        assert p.applicability == "unsafe"
        treated = patient(**given)
        apply(treated, p)
        x, y = w.batches[0]
        torch.testing.assert_close(treated.workload.training_step(treated.model, (x, y)), F.cross_entropy(treated.model(x), y))
    treated = patient(optimizer=lambda q: torch.optim.Adam(q, maximize=True))
    report = measured(workload(optimizer=lambda q: torch.optim.Adam(q, maximize=True)), 10)
    (p,) = CATALOGUE["flip-sign"].propose(next(f for f in report.findings if f.code == "GRAPH004"), report.measurement)
    assert p.applicability == "safe"
    apply(treated, p)
    assert treated.optimizer.param_groups[0]["maximize"] is False


def test_one_term_of_a_sum_changes_its_sign() -> None:
    def difference(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.square().mean() - F.cross_entropy(output, target)

    w = workload(loss=difference)
    report = measured(w, 10)
    call = next(c for c in report.measurement.losses if c.function == "cross_entropy")
    treated = patient(loss=difference)
    apply(treated, order("flip-sign", function="cross_entropy", whole=False, location=call.site))
    x, y = w.batches[0]
    out = treated.model(x)
    torch.testing.assert_close(treated.workload.training_step(treated.model, (x, y)), out.square().mean() + F.cross_entropy(out, y))
    torch.testing.assert_close(w.training_step(w.model, (x, y)), w.model(x).square().mean() - F.cross_entropy(w.model(x), y))


def user_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 2 * F.cross_entropy(output, target)


CRITERION = nn.CrossEntropyLoss()


def user_step(model: nn.Module, batch: Any) -> torch.Tensor:
    return CRITERION(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        ({"loss": nn.CrossEntropyLoss()}, 1),
        ({"loss": F.cross_entropy}, 1),
        ({"loss": user_loss}, 2),
        ({"loss": Hand(nn.CrossEntropyLoss())}, 1),
        ({"training_step": user_step}, 1),
    ],
    ids=["module", "function", "own function", "own module", "training step"],
)
def test_label_smoothing_reaches_the_cross_entropy(given: Any, factor: int) -> None:
    w = workload(**given)
    (p,) = CATALOGUE["label-smoothing"].propose(None, measured(w, 6, fast=True).measurement)
    treated = patient(**given)
    apply(treated, p)
    treated = treated.copy()
    x, y = w.batches[0]
    smooth = factor * F.cross_entropy(treated.model(x), y, label_smoothing=0.1)
    torch.testing.assert_close(treated.workload.training_step(treated.model, (x, y)), smooth)
    torch.testing.assert_close(w.training_step(w.model, (x, y)), factor * F.cross_entropy(w.model(x), y))
    assert CRITERION.label_smoothing == 0.0


def test_smoothing_is_not_proposed_for_values_or_twice() -> None:
    values = measured(workload(net(outputs=1), regression(), F.mse_loss), 6, fast=True).measurement
    assert CATALOGUE["label-smoothing"].propose(None, values) == []
    smooth = measured(workload(loss=functools.partial(F.cross_entropy, label_smoothing=0.2)), 6, fast=True).measurement
    assert CATALOGUE["label-smoothing"].propose(None, smooth) == []


def test_what_cannot_be_reached_is_said() -> None:
    treated = patient(training_step=step_of(lambda o, t: F.cross_entropy(o, t)))
    with pytest.raises(Inapplicable):
        apply(treated, order("label-smoothing", smoothing=0.1))


class Wordy(nn.Module):
    """Its output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.body(x)}


def test_outputs_that_are_no_tensors_are_refused_at_once() -> None:
    treated = patient(Wordy(), loss=lambda o, t: F.nll_loss(o["logits"], t))
    with pytest.raises(Inapplicable, match="dict"):
        apply(treated, order("replace-loss", old="nll_loss", new="cross_entropy", function="", classes=3))


def test_two_treatments_of_one_loss_add_up() -> None:
    treated = patient(loss=user_loss)
    where = measured(workload(loss=user_loss), 6, fast=True).measurement.losses[0].site
    apply(treated, order("label-smoothing", smoothing=0.3, location=where))
    treated = treated.copy()
    apply(treated, order("flip-sign", function="cross_entropy", whole=True))
    x, y = classification()[0]
    wanted = -2 * F.cross_entropy(treated.model(x), y, label_smoothing=0.3)
    torch.testing.assert_close(treated.copy().workload.training_step(treated.model, (x, y)), wanted)
