"""Autocast to float16 becomes autocast to bfloat16, however it is written."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.precision import in_bfloat16
from gradcheck.workload.treated import Inapplicable
from tests.remedies.recipes import measured, order, patient, step, workload

DTYPE = torch.float16


@pytest.mark.parametrize(
    ("before", "changed"),
    [
        ("torch.autocast('cpu', dtype=torch.float16)", True),
        ("torch.autocast('cuda')", True),
        ("torch.cuda.amp.autocast()", True),
        ("autocast('cpu', torch.half, True)", True),
        ("torch.autocast('cpu', dtype=DTYPE)", True),
        ("torch.autocast('cpu')", False),
        ("torch.autocast('cuda', dtype=torch.bfloat16)", False),
        ("torch.autocast('cuda', enabled=False)", False),
    ],
)
def test_what_computes_in_float16_is_changed_and_nothing_else(before: str, changed: bool) -> None:
    (function,) = ast.parse(f"def f(x):\n    with {before}:\n        return x").body
    assert isinstance(function, ast.FunctionDef)
    new = in_bfloat16(function)
    assert (new is not None) == changed
    if new is not None:
        ast.fix_missing_locations(new)
        text = ast.unparse(new)
        assert ".bfloat16" in text and "half" not in text and "DTYPE" not in text and "float16)" not in text.replace(".bfloat16)", "")
        assert ("True" in before) == ("True" in text)


def loud(model: nn.Module, batch: Any) -> torch.Tensor:
    with torch.autocast("cpu", dtype=DTYPE):
        return F.cross_entropy(model(1e3 * batch[0]) ** 3, batch[1])


def test_a_training_step_that_overflows_stays_finite() -> None:
    w = workload(training_step=loud)
    report = measured(w, 10)
    finding = next(f for f in report.findings if any(r.name == "bfloat16" for r in f.remedies))
    (p,) = CATALOGUE["bfloat16"].propose(finding, report.measurement)
    treated, untreated = patient(training_step=loud), patient(training_step=loud)
    apply(treated, p)
    assert math.isfinite(step(treated)) and not math.isfinite(step(untreated))


class Inside(nn.Module):
    """Switches to half precision by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    @torch.autocast("cpu", dtype=torch.float16)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def test_a_decorated_forward_is_changed_on_the_patient_only() -> None:
    given = patient(Inside())
    apply(given, order("bfloat16"))
    x = torch.randn(2, 6)
    assert given.model(x).dtype == torch.bfloat16
    assert given.copy().model(x).dtype == torch.bfloat16
    assert Inside()(x).dtype == torch.float16


def test_it_does_not_apply_where_no_autocast_is_written() -> None:
    with pytest.raises(Inapplicable, match="no such place"):
        apply(patient(), order("bfloat16"))
