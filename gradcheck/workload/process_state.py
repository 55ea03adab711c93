"""The guard that leaves the process as it was."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from gradcheck.workload.device import autocast_kinds
from gradcheck.workload.rng import preserve_rng

_FLAGS = (
    (torch.backends.cudnn, ("enabled", "benchmark", "deterministic", "allow_tf32")),
    (torch.backends.cuda.matmul, ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")),
)
# How each is read and set. Set only where it changed: the one for determinism imports the compiler, which takes seconds.
_GLOBALS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()), lambda x: torch.autograd.set_detect_anomaly(*x)),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda x: torch.use_deterministic_algorithms(x[0], warn_only=x[1]),
    ),
    (np.geterr, lambda x: np.seterr(**x)),
    *((partial(getattr, home, name), partial(setattr, home, name)) for home, names in _FLAGS for name in names),
)


@contextmanager
def untouched() -> Iterator[None]:
    """Restores random states (torch, numpy, python) and torch's global flags on the way out, even after an exception."""
    before, device = [read() for read, _ in _GLOBALS], _default_device()
    autocast = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in autocast_kinds()}
    try:
        with preserve_rng():
            yield
    finally:
        if _default_device() != device:
            torch.set_default_device(device)
            if device is None:  # torch 2.6 takes what remains of an old one for a device
                vars(torch)["_GLOBAL_DEVICE_CONTEXT"].__dict__.pop("device_context", None)
        for (read, write), value in zip(_GLOBALS, before, strict=True):
            if read() != value:
                write(value)
        for kind, (enabled, kind_dtype) in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, kind_dtype)


# Objects for each module between two collections. Measured on 5,000 modules: every seventh second went into walking all objects again and
# again, for nothing; with ten every tenth second of 20,000 still did. With fifty, 50,000 peak at 2.47 GB instead of 2.45.
OBJECTS = 50


@contextmanager
def fewer_collections(model: nn.Module) -> Iterator[None]:
    """Python looks for cycles among all objects ever so often: less often while there are many, in proportion to the model's modules."""
    every, *others = gc.get_threshold()
    wanted = OBJECTS * sum(1 for _ in model.modules())
    if 0 < every < wanted:
        gc.set_threshold(wanted, *others)
    try:
        yield
    finally:
        gc.set_threshold(every, *others)


def _default_device() -> torch.device | None:
    """None when none was set: setting the CPU instead would leave a function mode behind."""
    context = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return torch.get_default_device() if context is not None else None
