"""Terms that are weighed, added or cut off from the gradient, on small trainings whose loss is least where they have failed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.config.settings import settings_from
from gradcheck.loading.objects import from_objects
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.loss.term_weight import without_balancing
from gradcheck.trials.candidates import entries
from gradcheck.trials.yardstick import yardstick_of
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import Inapplicable, treated_copy
from gradcheck.workload.workload import Workload
from tests.literals import measurement


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code, self.decoded = nn.Linear(16, 8), nn.Linear(4, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, logvar = self.code(x).chunk(2, 1)
        return self.decoded(mean + torch.randn_like(mean) * (logvar / 2).exp()), mean, logvar


def coding(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    decoded, mean, logvar = model(batch[0])
    return F.mse_loss(decoded, batch[0]) - 0.5 * (1 + logvar - mean**2 - logvar.exp()).sum()


class Twins(nn.Module):
    def __init__(self, predicts: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.LayerNorm(8))
        self.predictor = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)) if predicts else nn.Identity()


def alike(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    one, other = (model.encoder(x + 0.2 * torch.randn_like(x)) for _ in range(2))
    return -sum(F.cosine_similarity(model.predictor(a), b).mean() for a, b in ((one, other), (other, one))) / 2


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(16, 4), nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, choice = self.router(x).softmax(-1).max(-1)
        return torch.stack([w * self.experts[int(i)](row) for row, w, i in zip(x, weight, choice, strict=True)])


def task(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def workload(model: nn.Module, step, batches, rate: float = 1e-2) -> Workload:
    torch.manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.Linear):
            m.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    return from_objects(model, batches, training_step=step, optimizer=optimizer, batches=512)


def samples(count: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, generator=generator) @ torch.randn(4, 16, generator=generator)


def test_two_penalties_are_not_weighed_against_each_other() -> None:
    """What an opponent says of the codes, and a small divergence of them, beside an error that outweighs both."""
    opponent = nn.Linear(4, 1).requires_grad_(False)

    def step(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        decoded, mean, logvar = model(batch[0])
        divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).mean()
        return F.mse_loss(decoded, batch[0], reduction="sum") - F.logsigmoid(10 * opponent(mean)).mean() + 1e-3 * divergence

    w = workload(Coder(), step, [[x] for x in samples(128).split(32)])
    report = scan_workload(w, replace(settings_from({"select": ["LOSS010"]}), budget=2.0, seeds=1, steps=5))
    assert report.measurement.imbalance is None


def test_a_divergence_is_known_by_its_gradient_and_weighed() -> None:
    w = workload(Coder(), coding, [[x] for x in samples(128).split(32)])
    report = scan_workload(w, replace(settings_from(None), budget=2.0, seeds=1, steps=30))
    (entry, *stronger) = entries(report, "other", ["kl-weight"])
    pair, weight = report.measurement.imbalance, entry.fixes[0].settings["weight"]
    assert pair is not None and pair.balanced == pytest.approx(weight, rel=1e-2) and len(stronger) == 2
    treated = treated_copy(w)
    x = w.batches[0]
    torch.manual_seed(1)
    decoded, mean, logvar = treated.model(x[0])
    error, nats = F.mse_loss(decoded, x[0]), -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum()
    yardstick = yardstick_of(entry.fixes, report.measurement)
    assert yardstick is not None
    torch.manual_seed(1)
    assert yardstick.made(w.training_step)(treated.model, x).item() == pytest.approx((error * (2 * nats / 32 / 16).exp()).item(), rel=1e-4)
    apply(treated, entry.fixes[0])
    torch.manual_seed(1)
    assert treated.workload.training_step(treated.model, x).item() == pytest.approx((error + weight * nats).item(), rel=1e-4)


def test_embeddings_are_compared_by_their_spread_and_stopped() -> None:
    w = workload(Twins(), alike, list(samples(128).split(32)), 1e-3)
    fix = Fix("stop-gradient", "", "loss", "unsafe")
    yardstick, treated = yardstick_of([fix], measurement()), treated_copy(w)
    assert yardstick is not None and 0 < yardstick.made(w.training_step)(w.model, w.batches[0]) < 0.5
    apply(treated, fix)
    x, model = w.batches[0], treated.model
    torch.manual_seed(1)
    given = torch.autograd.grad(treated.workload.training_step(model, x), list(model.encoder.parameters()))
    torch.manual_seed(1)
    one, other = (model.encoder(x + 0.2 * torch.randn_like(x)) for _ in range(2))
    loss = -sum(F.cosine_similarity(model.predictor(a), b.detach()).mean() for a, b in ((one, other), (other, one))) / 2
    for got, expected in zip(given, torch.autograd.grad(loss, list(model.encoder.parameters())), strict=True):
        torch.testing.assert_close(got, expected)


def test_without_a_predictor_a_stopped_gradient_changes_nothing() -> None:
    treated = treated_copy(workload(Twins(predicts=False), alike, list(samples().split(32))))
    with pytest.raises(Inapplicable, match="predictor"):
        apply(treated, Fix("stop-gradient", "", "loss", "unsafe"))


def test_balanced_experts_get_their_tokens() -> None:
    treated = treated_copy(workload(nn.Sequential(Experts()), task, list(samples().split(32))))
    plain = treated.workload.training_step
    apply(treated, Fix("load-balancing", "", "loss", "unsafe", {"weight": 1.0}))
    step, x = treated.workload.training_step, treated.workload.batches[0]
    assert step is not plain and without_balancing(step) is plain
    router = treated.model[0].router
    nn.init.constant_(router.bias[:1], 3.0)
    before = router(x).argmax(1).bincount(minlength=4).max()
    for _ in range(40):
        treated.optimizer.zero_grad()
        step(treated.model, x).backward()
        treated.optimizer.step()
    assert router(x).argmax(1).bincount(minlength=4).max() < 0.7 * before


@pytest.mark.parametrize("name", ["kl-weight", "stop-gradient", "load-balancing"])
def test_they_do_not_enter_where_nothing_is_wrong(name: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    report = scan_workload(workload(model, task, list(samples(64).split(32))), replace(settings_from(None), budget=2.0, seeds=1, steps=30))
    (entry,) = entries(report, "other", [name])
    assert entry.inapplicable and CATALOGUE[name].propose(None, report.measurement) == []
    assert yardstick_of(entry.fixes, report.measurement) is None
