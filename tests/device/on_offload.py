"""What a scan holds on a device, with and without `--offload`, in bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import gradcheck
from tests.device import pretend

DEVICE = pretend.NAME
WIDTH = 96


class Held:
    """Bytes that live on the device; `peak` since it was last set to 0."""

    def __init__(self) -> None:
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: held for key, held in self.storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return tensor


@contextlib.contextmanager
def counted() -> Iterator[Held]:
    held, real = Held(), pretend._device
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretend, "_device", lambda tensor: held.note(real(tensor)))
        yield held


def training() -> tuple[nn.Module, Any, torch.optim.Optimizer]:
    """In the middle of it: gradients and moments are there."""
    torch.manual_seed(0)
    body = [layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*body, nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [(torch.randn(8, WIDTH, device=DEVICE), torch.randint(3, (8,), device="cpu").to(DEVICE)) for _ in range(4)]
    for x, y in batches[:2]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, batches, optimizer


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    moments = [t for state in optimizer.state.values() for t in state.values()]
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()), *moments]
    return [t.detach().cpu().numpy().tobytes() for t in tensors if t is not None]


def test_a_device_holds_the_training_and_no_copy() -> None:
    peaks, losses = {}, {}
    for offload in (False, True):
        with counted() as held:
            model, batches, optimizer = training()
            own, before = held.peak, bits(model, optimizer)
            held.peak = 0
            config = {"offload": offload, "fast": True, "budget": 600.0}
            report = gradcheck.scan(model, batches, loss="cross_entropy", optimizer=optimizer, config=config)
            peaks[offload], losses[offload] = held.peak / own, report.measurements[0].probe.losses
            assert bits(model, optimizer) == before
    assert losses[True] == losses[False]
    assert peaks[True] <= 1.1 < 1.5 < peaks[False], peaks


def test_all_of_a_scan_leaves_the_training_as_it_was() -> None:
    """With the checks that look at two copies in turn."""
    model, batches, optimizer = training()
    before = bits(model, optimizer)
    config = {"offload": True, "budget": 600.0}
    report = gradcheck.scan(model, batches, loss="cross_entropy", optimizer=optimizer, steps=20, config=config)
    assert not any(n.lack == "failed" for n in report.measurements[0].not_measured)
    assert bits(model, optimizer) == before
