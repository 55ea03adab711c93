"""Patients for the tests of treatments of the recipe, and what a test needs to watch them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradcheck.config.settings import Settings
from gradcheck.loading.objects import from_objects
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import TreatedWorkload, treated_copy
from gradcheck.workload.workload import Workload


def classification(count: int = 4, size: int = 16, features: int = 6, classes: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    means = 2 * torch.randn(classes, features, generator=generator)
    batches = []
    for _ in range(count):
        labels = torch.randint(classes, (size,), generator=generator)
        batches.append((means[labels] + torch.randn(size, features, generator=generator), labels))
    return batches


def regression(count: int = 4, size: int = 16, features: int = 6, scale: float = 1.0, offset: float = 0.0) -> list[Any]:
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(features, 1, generator=generator)
    inputs = [torch.randn(size, features, generator=generator) for _ in range(count)]
    return [(x, offset + scale * (x @ weights)) for x in inputs]


def net(features: int = 6, outputs: int = 3, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs))


def workload(
    model: nn.Module | None = None,
    batches: Any = None,
    loss: Any = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.1),
    **more: Any,
) -> Workload:
    model = net() if model is None else model
    loss = nn.CrossEntropyLoss() if loss is None and "training_step" not in more else loss
    return from_objects(model, classification() if batches is None else batches, loss=loss, optimizer=optimizer(model.parameters()), **more)


def patient(*args: Any, **kwargs: Any) -> TreatedWorkload:
    return treated_copy(workload(*args, **kwargs))


def measured(w: Workload, steps: int = 40, *, fast: bool = False) -> Any:
    """The report of a short scan; a fast one makes no checks beside the probe."""
    return scan_workload(w, Settings(steps=steps, budget=20.0, fast=fast))


def order(name: str, **settings: Any) -> Fix:
    """A fix as a test writes it."""
    treatment = CATALOGUE[name]
    layers, location = settings.pop("layers", ()), settings.pop("location", None)
    return Fix(name, "", treatment.stage, treatment.applicability, settings, layers, location=location)


def step(p: TreatedWorkload, batch: Any = None) -> float:
    """One training step of the patient as a bare loop takes it."""
    batch = p.workload.batches[0] if batch is None else batch
    p.optimizer.zero_grad()
    loss = p.workload.training_step(p.model, batch)
    loss.backward()
    p.optimizer.step()
    return float(loss.detach())
