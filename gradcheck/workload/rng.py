"""Random states of torch on every device in use, of numpy and of python: saved, seeded, put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from gradcheck.workload.device import accelerator_in_use


class TorchStates(NamedTuple):
    """States of torch's generators: the CPU's, and those of the accelerator's devices where one is in use."""

    cpu: torch.Tensor
    devices: tuple[torch.Tensor, ...]


class HostStates(NamedTuple):
    """States of Python's generator and of numpy's, which modules draw from as well."""

    python: Any
    array: Any


def host_states() -> HostStates:
    return HostStates(random.getstate(), np.random.get_state())


def put_back_host(states: HostStates) -> None:
    random.setstate(states.python)
    np.random.set_state(states.array)


def torch_states() -> TorchStates:
    module = accelerator_in_use()
    return TorchStates(torch.get_rng_state(), _states_of(module) if module is not None else ())


def put_back(states: TorchStates) -> None:
    torch.set_rng_state(states.cpu)
    module = accelerator_in_use() if states.devices else None
    if module is None:
        return
    if hasattr(module, "set_rng_state_all"):
        module.set_rng_state_all(list(states.devices))
    elif len(states.devices) == 1:  # MPS takes no index
        module.set_rng_state(states.devices[0])
    else:
        for index, state in enumerate(states.devices):
            module.set_rng_state(state, index)


def same_states(one: TorchStates, other: TorchStates) -> bool:
    pairs = zip((one.cpu, *one.devices), (other.cpu, *other.devices), strict=False)
    return len(one.devices) == len(other.devices) and all(torch.equal(a, b) for a, b in pairs)


def _states_of(module: Any) -> tuple[torch.Tensor, ...]:
    if hasattr(module, "get_rng_state_all"):
        return tuple(module.get_rng_state_all())
    count = module.device_count()
    return (module.get_rng_state(),) if count == 1 else tuple(module.get_rng_state(i) for i in range(count))


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Puts the states of all generators back on the way out, also after an exception."""
    python, array, states = random.getstate(), np.random.get_state(), torch_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        put_back(states)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def reseed(seed: int) -> None:
    """Like `seed_all`, but quick enough for every step: devices that were never used are left alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    module = accelerator_in_use()
    if module is not None:
        getattr(module, "manual_seed_all", module.manual_seed)(seed)


class Dice:
    """The random numbers that follow a seed, again and again: `throw()` restarts them, at a fraction of the cost of seeding."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        seed_all(seed)
        self.states = random.getstate(), np.random.get_state(), torch_states()

    def throw(self) -> None:
        python, array, states = self.states
        if not states.devices and accelerator_in_use() is not None:  # it has been used since
            self.__init__(self.seed)  # type: ignore[misc]
            return
        random.setstate(python)
        np.random.set_state(array)
        put_back(states)
