"""Random states of torch, numpy and python: saved, seeded, put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Puts the states of all generators back on the way out, also after an exception."""
    python, array, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def reseed(seed: int) -> None:
    """As `seed_all`, quick enough for every step: devices that were never used are left alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


class Dice:
    """The random numbers that follow a seed, again and again: `throw()` starts them anew, at a fraction of the cost of seeding."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        seed_all(seed)
        self.states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def throw(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            seed_all(self.seed)
            return
        python, array, cpu = self.states
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(cpu)
