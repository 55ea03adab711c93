"""The guard that leaves the process as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from gradcheck.workload.device import autocast_kinds
from gradcheck.workload.rng import preserve_rng

_BACKEND_FLAGS = (
    (torch.backends.cudnn, ("enabled", "benchmark", "deterministic", "allow_tf32")),
    (torch.backends.cuda.matmul, ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")),
)


@contextmanager
def untouched() -> Iterator[None]:
    """Restores random states (torch, numpy, python) and torch's global flags on the way out, even after an exception."""
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    precision, device = torch.get_float32_matmul_precision(), _default_device()
    flags = [(home, name, getattr(home, name)) for home, names in _BACKEND_FLAGS for name in names]
    autocast = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in autocast_kinds()}
    cache, numpy_errors = torch.is_autocast_cache_enabled(), np.geterr()
    try:
        with preserve_rng():
            yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if _default_device() != device:
            torch.set_default_device(device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()) != deterministic:
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])  # it imports the compiler: seconds
        torch.autograd.set_detect_anomaly(*anomaly)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        for home, name, value in flags:
            if getattr(home, name) != value:
                setattr(home, name, value)
        for kind, (enabled, kind_dtype) in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, kind_dtype)
        torch.set_autocast_cache_enabled(cache)
        np.seterr(**numpy_errors)


def _default_device() -> torch.device | None:
    """None when none was set: setting the CPU instead would leave a function mode behind."""
    context = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return torch.get_default_device() if context is not None else None
