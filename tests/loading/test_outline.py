"""`--init-only`: a model without numbers, and what can be told of it."""

from __future__ import annotations

import textwrap

import pytest
import torch
from torch import nn

from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.instrument.initializers import Initializers
from gradcheck.loading.spec import TargetSpec
from gradcheck.pipeline import scan_target

DRAWS = {
    "default": lambda w: None,
    "normal": lambda w: nn.init.normal_(w, 0.5, 0.02),
    "xavier": lambda w: nn.init.xavier_uniform_(w, gain=2.0),
    "kaiming": nn.init.kaiming_normal_,
    "truncated": lambda w: nn.init.trunc_normal_(w, std=0.7, a=-1, b=1),
    "orthogonal": lambda w: nn.init.orthogonal_(w, gain=1.5),
    "constant": lambda w: nn.init.constant_(w, 0.3),
    "data": lambda w: w.data.uniform_(-1, 1).mul_(0.1),
}


@pytest.mark.parametrize("how", DRAWS)
def test_draws_are_repeated(how):
    torch.manual_seed(0)
    real = nn.Linear(200, 100)
    DRAWS[how](real.weight)
    draws = Initializers()
    with torch.device("meta"), draws:
        model = nn.Linear(200, 100)
        DRAWS[how](model.weight)
    found = draws.of(model.weight)
    assert found.std == pytest.approx(real.weight.std().item(), rel=0.03, abs=1e-6)
    assert found.mean == pytest.approx(real.weight.mean().item(), abs=0.02)


def test_parameters_made_of_draws_and_rows_that_are_filled():
    draws = Initializers()
    with torch.device("meta"), draws:
        scaled = nn.Parameter(torch.randn(100, 50) * 0.02 + 1.0)
        padded = nn.Embedding(500, 8, padding_idx=0)
        copied = nn.Parameter(torch.linalg.qr(torch.randn(64, 64))[0])
    assert draws.of(scaled).std == pytest.approx(0.02, rel=0.03) and draws.of(scaled).mean == pytest.approx(1.0, rel=0.01)
    assert draws.of(padded.weight).std == pytest.approx(1.0, rel=0.03)
    assert draws.of(copied).std is None


@pytest.fixture
def huge(tmp_path):
    """2e12 parameters, the linear layer frozen with an adapter beside it."""
    path = tmp_path / "huge.py"
    path.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            class Adapted(nn.Module):
                def __init__(self, n):
                    super().__init__()
                    self.base = nn.Linear(n, n).requires_grad_(False)
                    self.down, self.up = nn.Linear(n, 4, bias=False), nn.Linear(4, n, bias=False)
            def build_model(n=1_000_000):
                return nn.Sequential(Adapted(n), Adapted(n))
            def needs_numbers():
                return nn.Linear(4, int(torch.ones(3).sum()))
            """
        )
    )
    return path


def test_a_model_that_no_machine_holds_is_described_and_not_called_healthy(huge):
    report = scan_target(TargetSpec(str(huge), init_only=True), Settings())
    assert report.coverage.in_part and not report.findings
    assert "passed" in {s.status for s in report.rules if s.name == "adapter-coverage"}
    told = {a.about: a.text for a in report.measurement.assumptions}
    assert "8,000 GB of parameters" in told["memory"] and "0.064 GB of gradients" in told["memory"]
    assert any("std 0.00058" in a.text and "gain 0.58" in a.text for a in report.measurement.assumptions)
    assert all("nothing was run" in n.why for n in report.measurement.not_measured)


def test_a_model_that_needs_numbers_is_one_clear_error(huge):
    with pytest.raises(TargetError, match="meta") as caught:
        scan_target(TargetSpec(f"{huge}:needs_numbers", init_only=True), Settings())
    assert "configuration alone" in (caught.value.hint or "")
