from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.utils.flop_counter import FlopCounterMode

from gradcheck.measure.profile import profile
from gradcheck.workload.training_copy import fork
from tests.measure.workloads import cross_entropy_step, workload


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2))
        self.head = nn.Linear(8 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


@pytest.fixture
def net() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return Net(), (torch.randn(5, 3, 8, 8), torch.randint(4, (5,)))


def test_flops_are_those_that_torch_counts(net: tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> None:
    model, batch = net
    with FlopCounterMode(model, display=False) as counter:
        cross_entropy_step(model, batch)
    expected = {name.removeprefix("Net").lstrip("."): sum(c.values()) for name, c in counter.get_flop_counts().items() if name != "Global"}
    found = profile(fork(workload(model, batches=[batch])), batch)
    assert {name: p.flops for name, p in found.items() if p.flops} == expected
    assert found[""].flops == counter.get_total_flops() > 0
    assert found["head"].flops == 2 * 5 * 72 * 4
    assert found["body.1"].flops == 0


def test_parameters_memory_and_times(net: tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> None:
    model, batch = net
    found = profile(fork(workload(model, batches=[batch])), batch)
    assert list(found) == [name for name, _ in model.named_modules()]
    assert found["head"].parameters == 72 * 4 + 4
    assert found[""].parameters == sum(p.numel() for p in model.parameters())
    assert found["body.0"].activation_bytes == 5 * 8 * 8 * 8 * 4
    assert all(p.forward_ms > 0 for p in found.values())
    assert found[""].forward_ms > found["head"].forward_ms
    assert found["head"].backward_ms is not None and found["head"].backward_ms > 0


def test_a_module_that_does_not_run_has_no_profile() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    w = workload(Idle())
    assert set(profile(fork(w), w.batches[0])) == {"", "used"}


def test_a_module_that_runs_twice_is_charged_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.layer(x)))

    w = workload(Twice())
    assert profile(fork(w), w.batches[0])["layer"].flops == 2 * (2 * 16 * 6 * 6)


def test_no_hook_stays_behind(net: tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> None:
    model, batch = net
    profile(fork(workload(model, batches=[batch])), batch)
    assert not module_hooks._global_forward_hooks
    assert not module_hooks._global_forward_pre_hooks
