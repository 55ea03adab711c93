"""What `torch.acc` is: the module of the pretend accelerator, as `torch.cuda` is that of CUDA."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils.backend_registration import _DummyBackendModule

from tests.device.ledger import wait


class Backend(_DummyBackendModule):
    """Its one device has random numbers of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator(device="cpu")
        self.default_generators = [self.generator]

    device = contextlib.nullcontext

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        wait("synchronize")

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        self.generator.set_state(state)

    def manual_seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]
