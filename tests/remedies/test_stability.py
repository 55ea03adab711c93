"""Stable forms have the same value and gradient where both are finite, and stay finite where the old ones are not."""

from __future__ import annotations

import ast
import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.loss.stability import guarded, stable_form
from tests.remedies.recipes import measured, patient, workload

STABLE = functools.partial(stable_form, "other")
LARGE = torch.tensor([[120.0, -120.0, 0.0]])

SAME = {
    "torch.log(F.softmax(z, dim=1))": True,
    "F.softmax(z, 1).log()": True,
    "z.softmax(dim=1).log()": True,
    "torch.log(torch.sigmoid(z))": True,
    "torch.log(1 - torch.sigmoid(z))": True,
    "torch.log(1 + torch.exp(z))": True,
    "torch.log(torch.exp(z).sum(1))": True,
    "torch.log(z.exp().sum(dim=1, keepdim=True))": True,
    "torch.exp(z) / torch.exp(z).sum(dim=1, keepdim=True)": True,
}


def evaluated(source: str, z: torch.Tensor, edit: Any = None) -> torch.Tensor:
    tree = ast.parse(source, mode="eval")
    if edit is not None:
        tree.body = edit(tree.body, None)
    code = compile(ast.fix_missing_locations(tree), "<test>", "eval")
    return eval(code, {"torch": torch, "F": F, "z": z})


@pytest.mark.parametrize("source", SAME)
def test_stable_forms_are_the_same_function(source: str) -> None:
    torch.manual_seed(0)
    one = torch.randn(4, 3, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    plain, stable = evaluated(source, one), evaluated(source, other, STABLE)
    torch.testing.assert_close(plain, stable)
    plain.sum().backward()
    stable.sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("source", SAME)
def test_stable_forms_are_finite_for_large_outputs(source: str) -> None:
    z = LARGE.clone().requires_grad_()
    assert not torch.isfinite(evaluated(source, z)).all()
    stable = evaluated(source, z, STABLE)
    stable.sum().backward()
    assert torch.isfinite(stable).all() and torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("source", "singular"),
    [
        ("torch.log(z)", 0.0),
        ("torch.sqrt(z)", 0.0),
        ("z.sqrt()", -1.0),
        ("z ** 0.5", 0.0),
        ("1 / z", 0.0),
        ("torch.acos(z)", 1.0),
        ("torch.exp(z)", 100.0),
        ("z.rsqrt()", 0.0),
    ],
)
def test_guards_keep_value_and_gradient_finite(source: str, singular: float) -> None:
    z = torch.tensor([singular], requires_grad=True)
    value = evaluated(source, z)
    value.sum().backward()
    assert not (torch.isfinite(value).all() and torch.isfinite(z.grad).all())
    z.grad = None
    value = evaluated(source, z, guarded)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(z.grad).all()
    usual = torch.tensor([0.5])
    torch.testing.assert_close(evaluated(source, usual, guarded), evaluated(source, usual), rtol=1e-4, atol=1e-5)


def test_an_expression_that_was_guarded_before_still_has_its_argument() -> None:
    z = torch.tensor([-3.0, 0.5])
    twice = lambda node, f: stable_form("output", guarded(node, f), f)  # noqa: E731
    assert torch.isfinite(evaluated("torch.log(z)", z, twice)).all()


def by_hand(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -torch.log(F.softmax(output, dim=1))[torch.arange(len(target)), target].mean()


def test_the_loss_of_the_user_is_edited_on_the_patient_only() -> None:
    w = workload(loss=by_hand)
    report = measured(w, 10)
    finding = next(f for f in report.findings if f.code == "LOSS006")
    (p,) = CATALOGUE["stable-loss"].propose(finding, report.measurement)
    treated = patient(loss=by_hand)
    apply(treated, p)
    assert torch.isfinite(treated.workload.loss(LARGE, torch.tensor([1])))
    assert not torch.isfinite(by_hand(LARGE, torch.tensor([1])))
    assert not any(f.code == "LOSS006" for f in measured(treated.copy().workload, 10).findings)


def test_a_layer_s_output_is_made_positive() -> None:
    z = torch.tensor([-3.0, 0.0, 2.0])
    for source, wanted in (("torch.log(z)", torch.log(F.softplus(z) + 1e-6)), ("1 / z", 1 / (F.softplus(z) + 1e-6))):
        torch.testing.assert_close(evaluated(source, z, functools.partial(stable_form, "output")), wanted)


class Rooted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.fc(x)
        return torch.sqrt(z)


def test_a_model_s_own_code_is_guarded() -> None:
    w = workload(Rooted())
    report = measured(w, 10)
    finding = next(f for f in report.findings if any(r.name == "guard-domain" for r in f.remedies))
    (p,) = CATALOGUE["guard-domain"].propose(finding, report.measurement)
    treated = patient(Rooted())
    apply(treated, p)
    assert torch.isfinite(treated.copy().workload.training_step(treated.model, w.batches[0]))
    assert not torch.isfinite(w.model(w.batches[0][0])).all()


def test_nothing_is_proposed_without_a_place() -> None:
    assert CATALOGUE["stable-loss"].propose(None, measured(workload(), 6).measurement) == []
