"""Methods of the user's modules are edited on the patient as in the source."""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradcheck.remedies.modules.rewriting import operand, rewrite, torch_function
from gradcheck.types.location import Location
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from tests.remedies.patients import measured, outputs, patient, unchanged

OFFSET = 3.0


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 8), nn.Linear(8, 4)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.features(x)))


class Late(Base):
    """super(), a default from the class body, a private name, non-ASCII text before the call, several lines."""

    slope = 2.0

    def forward(self, x: torch.Tensor, factor: float = slope, *, shift: float = OFFSET) -> torch.Tensor:
        self.__calls = getattr(self, "_Late__calls", 0) + 1
        "é"
        x = F.relu(super().features(x) * factor)
        return self.head(x) + shift


class Method(Base):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return x.relu_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Kept(Base):
    """Its activation is a plain function in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.act = F.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.body(x)))


def noted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Decorated(Base):
    @noted
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


def made_inside(scale: float) -> nn.Module:
    class Inner(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(scale * torch.relu(super().features(x)))

    return Inner()


def with_gelu(model: nn.Module) -> TreatedWorkload:
    """A patient whose ReLU, wherever the scan sees it, is a GELU."""
    site = next(x.site for x in measured(model).layers if x.function == "relu")
    one = patient(model)
    rewrite(one, site, _gelu)
    return one


def _gelu(node: ast.expr, function: Any) -> ast.expr | None:
    argument = operand(node, function)
    return torch_function("nn.functional.gelu", argument) if argument is not None else None


def obvious(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    factor, shift = (2.0, OFFSET) if isinstance(model, Late) else (1.0, 0.0)
    scale = 5.0 if type(model).__name__ == "Inner" else 1.0
    return model.head(scale * F.gelu(model.body(x) * factor)) + shift


@pytest.mark.parametrize(
    "make", [Base, Late, Method, Kept, Decorated, lambda: made_inside(5.0)], ids=["plain", "late", "method", "kept", "decorated", "inner"]
)
def test_an_edited_method_computes_what_the_edited_source_would(make: Callable[[], nn.Module]) -> None:
    model = make()
    with unchanged(model):
        one = with_gelu(model)
    x = one.workload.batches[0][0]
    torch.testing.assert_close(outputs(one), obvious(model, x))
    assert not torch.allclose(model(x), obvious(model, x))


def test_copies_run_the_edit_on_their_own_weights() -> None:
    one = with_gelu(Base())
    twin = copy.deepcopy(one.model)
    with torch.no_grad():
        twin.body.weight.mul_(2)
    x = one.workload.batches[0][0]
    torch.testing.assert_close(twin(x), obvious(twin, x))
    assert not torch.allclose(twin(x), one.model(x))
    assert twin.forward.__self__ is twin


def test_every_module_that_runs_the_method_changes() -> None:
    model = nn.Sequential(Base(), nn.Linear(4, 16), Base())
    one = with_gelu(model)
    assert {name for name, m in one.model.named_modules() if "forward" in vars(m)} == {"0", "2"}
    assert not any("forward" in vars(m) for m in model.modules())


def test_an_edited_method_can_be_edited_again_and_is_measured_where_it_was() -> None:
    model = Base()
    one = with_gelu(model)
    gelu = next(x for x in measured(one.model).layers if x.function == "gelu")
    relu = next(x for x in measured(model).layers if x.function == "relu")
    assert gelu.site == relu.site
    rewrite(one, gelu.site, lambda node, function: operand(node, function))
    torch.testing.assert_close(outputs(one), model.head(model.body(one.workload.batches[0][0])))


def test_places_outside_the_model_are_refused() -> None:
    with pytest.raises(Inapplicable, match="outside the methods"):
        rewrite(patient(Base()), Location("elsewhere.py", 3, 1, 3, 9), _gelu)
    with pytest.raises(Inapplicable, match="not known"):
        rewrite(patient(Base()), None, _gelu)


def test_another_expression_at_the_place_is_refused() -> None:
    model = Base()
    site = next(x.site for x in measured(model).layers if x.function == "relu")
    assert site is not None
    with pytest.raises(Inapplicable, match="not of a form"):
        rewrite(patient(model), site, lambda node, function: None)


def test_code_without_source_is_refused() -> None:
    space: dict[str, Any] = {"nn": nn, "torch": torch}
    exec("class Made(nn.Linear):\n    def forward(self, x):\n        return torch.relu(super().forward(x))\n", space)
    space["Made"].__module__ = __name__
    model = space["Made"](16, 4)
    with pytest.raises(Inapplicable, match="cannot be read"):
        rewrite(patient(model), Location("<string>", 3, 16, 3, 46), _gelu)
