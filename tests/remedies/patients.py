"""Small patients for the tests of treatments, and what a scan measures of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.config.settings import Settings
from gradcheck.loading.objects import from_objects
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload, treated_copy
from gradcheck.workload.workload import Workload

FEATURES, CLASSES = 16, 4


def batches(shape: tuple[int, ...] = (FEATURES,), count: int = 3, size: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Samples of four classes, told apart by their mean."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(CLASSES, *shape, generator=generator)
    labels = [torch.randint(CLASSES, (size,), generator=generator) for _ in range(count)]
    return [(means[y] + torch.randn(size, *shape, generator=generator), y) for y in labels]


def workload(model: nn.Module, data: Any = None, optimizer: torch.optim.Optimizer | None = None, loss: Any = F.cross_entropy) -> Workload:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return from_objects(model, data if data is not None else batches(), loss=loss, optimizer=optimizer)


def patient(model: nn.Module, data: Any = None, optimizer: torch.optim.Optimizer | None = None) -> TreatedWorkload:
    return treated_copy(workload(model, data, optimizer))


def measured(model: nn.Module, data: Any = None, optimizer: torch.optim.Optimizer | None = None, rule: str = "") -> Measurement:
    """What a short scan measures; with a rule, also what that rule needs beside it."""
    settings = Settings(select=(rule,), steps=5) if rule else Settings(fast=True)
    return scan_workload(workload(model, data, optimizer), settings).measurement


def proposed(treatment: RemedyDefinition, model: nn.Module, finding: Finding | None = None, data: Any = None, rule: str = "") -> Fix:
    """The first fix for a model."""
    return treatment.propose(finding, measured(model, data, rule=rule))[0]


def treated(
    treatment: RemedyDefinition, model: nn.Module, finding: Finding | None = None, data: Any = None, rule: str = ""
) -> TreatedWorkload:
    """A patient after the treatment that is proposed for it."""
    assert treatment.apply is not None
    one = patient(model, data)
    treatment.apply(one, proposed(treatment, model, finding, data, rule))
    return one


def finding(code: str, *layers: str, **overrides: Any) -> Finding:
    return Finding(code, "name", "error", "message", layers, **overrides)


def plain(depth: int = 12, activation: Callable[[], nn.Module] = nn.ReLU, std: float | None = None, width: int = 32) -> nn.Sequential:
    """A plain stack of linear layers, with torch's initial weights or normal ones."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(FEATURES if i == 0 else width, width), activation()]
        if std is not None:
            nn.init.normal_(layers[-2].weight, std=std)  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The model is bit for bit, attribute for attribute, what it was."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [(name, id(m), sorted(vars(m))) for name, m in model.named_modules()]
    yield
    assert {k: id(m) for k, m in model.named_modules()} == {name: key for name, key, _ in modules}
    assert [(name, id(m), sorted(vars(m))) for name, m in model.named_modules()] == modules
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def losses(one: TreatedWorkload, steps: int = 60) -> list[float]:
    """The training losses of a copy: it really trains."""
    twin = one.copy()
    found = []
    for step in range(steps):
        batch = twin.workload.batches[step % len(twin.workload.batches)]
        twin.optimizer.zero_grad()
        loss = twin.workload.training_step(twin.model, batch)
        loss.backward()
        twin.optimizer.step()
        found.append(loss.item())
    return found


def held(one: TreatedWorkload) -> set[int]:
    """Ids of all tensors in the optimizer."""
    return {id(p) for group in one.optimizer.param_groups for p in group["params"]}


def outputs(one: TreatedWorkload) -> torch.Tensor:
    """Of the first batch, without a trace in the model."""
    twin = one.copy()
    with torch.no_grad():
        result: torch.Tensor = twin.model(one.workload.batches[0][0])
    return result
