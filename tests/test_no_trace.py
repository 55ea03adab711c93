"""A scan leaves the user's objects, the process and the folder bit for bit as they were, however it ends."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

import gradcheck
from gradcheck.measure.session import MeasurePlan, measure
from gradcheck.workload import set_aside
from gradcheck.workload.workload import Workload


class Net(nn.Module):
    """With all that a scan could disturb: running statistics, dropout, a frozen layer, tied weights, buffers, user's hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 8))
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.body[4].weight
        self.head = nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[float] = []
        self.fails_at: int | None = None  # the pass in which it raises `error`
        self.error: type[BaseException] = ValueError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(float(x.sum()))
        if self.fails_at is not None and self.calls.item() >= self.fails_at:
            raise self.error("in the middle")
        return self.head(F.relu(self.tied(self.body(x))))


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


@dataclass
class Users:
    """Everything that belongs to the user."""

    model: Net
    optimizer: torch.optim.Optimizer
    scheduler: Any
    batches: list[tuple[torch.Tensor, torch.Tensor]]

    def state(self) -> dict[str, Any]:
        """All that must be the same afterwards; identities as ids, tensors as bytes."""
        return {
            "parameters": [(n, id(p), p.data_ptr(), _bits(p), p.requires_grad, p._version) for n, p in self.model.named_parameters()],
            "gradients": [(n, id(p.grad), _bits(p.grad)) for n, p in self.model.named_parameters()],
            "buffers": [(n, id(b), _bits(b)) for n, b in self.model.named_buffers()],
            "training": [m.training for m in self.model.modules()],
            "attributes": [_attributes(m) for m in self.model.modules()],
            "optimizer": _frozen(self.optimizer.state_dict()),
            "optimizer keys": [id(p) for p in self.optimizer.state],
            "optimizer attributes": sorted(vars(self.optimizer)),
            "optimizer hooks": [list(getattr(self.optimizer, n)) for n in vars(self.optimizer) if n.endswith("_hooks")],
            "step": id(vars(self.optimizer).get("step")),
            "scheduler": _frozen({k: v for k, v in self.scheduler.state_dict().items() if not callable(v)}),
            "batches": [[_bits(t) for t in b] for b in self.batches],
            "batch versions": [[t._version for t in b] for b in self.batches],
        }


def _bits(x: torch.Tensor | None) -> bytes | None:
    return None if x is None else x.detach().numpy().tobytes()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes by value where that is plain; of hook tables the ids of the hooks."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, type(None), type))}
    lists = {k: list(v) for k, v in vars(module).items() if isinstance(v, list)}
    tables = {k: {key: id(hook) for key, hook in v.items()} for k, v in vars(module).items() if isinstance(v, dict)}
    return plain | lists | tables


def _frozen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _bits(value)
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_frozen(v) for v in value]
    return value


def process_state() -> dict[str, Any]:
    """Random states, global flags and global hooks."""
    numbers = np.random.get_state()
    tables = [*vars(module_hooks).items(), *vars(optimizer_hooks).items()]
    hook_tables = {name: list(table) for name, table in tables if name.startswith("_global") and isinstance(table, dict)}
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [x.tolist() if isinstance(x, np.ndarray) else x for x in numbers],
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
        "function mode": torch.overrides._get_current_function_mode(),
        "numpy errors": np.geterr(),
        "hooks": hook_tables,
        "module call": (
            nn.Module.__init__,
            nn.Module.__call__,
            nn.Module.__setattr__,
            torch.Tensor.backward,
            torch.optim.Optimizer.__init__,
        ),
    }


@pytest.fixture
def users() -> Iterator[Users]:
    """A model in the middle of its training: gradients, optimizer state and a scheduler are there."""
    torch.manual_seed(0)
    model = Net()
    model.body[1].eval()
    model.body[0].bias.requires_grad_(False)
    model.head.register_forward_hook(lambda m, a, y: None)
    generator = torch.Generator().manual_seed(1)
    labels = [torch.randint(2, (12,), generator=generator) for _ in range(3)]
    batches = [(torch.randn(12, 6, generator=generator) + 2 * y[:, None], y) for y in labels]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for x, y in batches[:2]:
        loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    model.body[3].train(False)
    yield Users(model, optimizer, scheduler, batches)


def by_measure(users: Users) -> Any:
    workload = Workload("test", users.model, users.batches, lambda m, b: loss(m(b[0]), b[1]), users.optimizer)
    return measure(workload, MeasurePlan(steps=12, profile=True))


def by_scan(users: Users) -> Any:
    return gradcheck.scan(users.model, users.batches, loss=loss, optimizer=users.optimizer, steps=12)


def by_scan_in_place(users: Users) -> Any:
    """Of a model that no copy can be made of: the user's own modules are trained, and put back."""
    users.model.lock = threading.Lock()  # type: ignore[assignment]
    return by_scan(users)


def by_scan_offloaded(users: Users) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_aside, "WORTH", 0)
        return gradcheck.scan(users.model, users.batches, loss=loss, optimizer=users.optimizer, steps=12, config={"offload": True})


SCANS: dict[str, Callable[[Users], Any]] = {
    "measure": by_measure,
    "scan": by_scan,
    "in place": by_scan_in_place,
    "offloaded": by_scan_offloaded,
}


@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_leaves_no_trace(users: Users, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, around = users.state(), process_state()
    result = SCANS[scan](users)
    assert result is not None
    assert users.state() == before
    assert process_state() == around
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("calls", [1, 2, 5, 9])
@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_that_is_broken_off_leaves_no_trace(
    users: Users, scan: str, calls: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`calls`: the pass of the scan in which the model raises: the first, a measured one, one between."""
    monkeypatch.chdir(tmp_path)
    users.model.fails_at, users.model.error = int(users.model.calls.item()) + calls, error
    before, around = users.state(), process_state()
    with pytest.raises((gradcheck.GradcheckError, KeyboardInterrupt, SystemExit)):
        SCANS[scan](users)
    assert users.state() == before
    assert process_state() == around
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scan", SCANS)
def test_a_failing_optimizer_leaves_no_trace(users: Users, scan: str) -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise KeyboardInterrupt

    users.optimizer = Fails(users.model.parameters(), lr=0.1)
    users.scheduler = torch.optim.lr_scheduler.StepLR(users.optimizer, 10)
    before, around = users.state(), process_state()
    with pytest.raises(KeyboardInterrupt):
        SCANS[scan](users)
    assert users.state() == before
    assert process_state() == around


def test_a_faulty_model_with_all_its_experiments_leaves_no_trace(users: Users) -> None:
    """A rate that diverges: other rates and a single batch are tried on further copies."""
    for group in users.optimizer.param_groups:
        group["lr"] = 1e3
    before, around = users.state(), process_state()
    by_measure(users)
    assert users.state() == before
    assert process_state() == around


def test_flags_that_the_user_set_are_kept(users: Users) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        np.seterr(all="raise")
        before, around = users.state(), process_state()
        with torch.no_grad():
            by_measure(users)
        assert process_state() == around
        assert users.state() == before
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
        np.seterr(all="warn", under="ignore")


def test_a_leaf_of_the_batch_keeps_its_gradient(users: Users) -> None:
    points = torch.randn(12, 6, requires_grad=True)
    points.sum().backward()
    gradient, version = points.grad, points._version
    gradcheck.scan(users.model, [(points, users.batches[0][1])], loss=loss, optimizer=users.optimizer, steps=12)
    assert points.grad is gradient and torch.equal(gradient, torch.ones(12, 6)) and points._version == version


def test_training_goes_on_as_if_there_had_been_no_scan(users: Users) -> None:
    def train() -> list[float]:
        losses = []
        for x, y in users.batches * 2:
            users.optimizer.zero_grad()
            value = loss(users.model(x), y)
            value.backward()
            users.optimizer.step()
            users.scheduler.step()
            losses.append(value.item())
        return losses

    start = copy.deepcopy((users.model.state_dict(), users.optimizer.state_dict(), users.scheduler.state_dict()))
    rng = torch.get_rng_state()
    undisturbed = train()
    users.model.load_state_dict(start[0])
    users.optimizer.load_state_dict(start[1])
    users.scheduler.load_state_dict(start[2])
    torch.set_rng_state(rng)
    by_scan(users)
    assert train() == undisturbed


@pytest.mark.parametrize(
    "disturb",
    [
        lambda u: u.model.head.weight.data.add_(1e-7),
        lambda u: u.model.body[1].running_mean.add_(1e-7),
        lambda u: u.model.body[3].train(),
        lambda u: u.model.head.weight.requires_grad_(False),
        lambda u: u.model.zero_grad(set_to_none=True),
        lambda u: u.model.head.register_forward_hook(print),
        lambda u: u.optimizer.step(),
        lambda u: u.optimizer.register_step_pre_hook(print),
        lambda u: u.batches[0][0].mul_(2),
    ],
)
def test_this_test_sees_a_trace(users: Users, disturb: Callable[[Users], Any]) -> None:
    before = users.state()
    disturb(users)
    assert users.state() != before


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand(), lambda: random.random()])
def test_this_test_sees_a_drawn_number(draw: Callable[[], Any]) -> None:
    before = process_state()
    draw()
    assert process_state() != before
