from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradcheck.workload import process_state
from gradcheck.workload.process_state import OBJECTS, fewer_collections, untouched


def rng() -> Any:
    return (
        random.getstate(),
        [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()],
        torch.get_rng_state().tolist(),
    )


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "torch random": (lambda: torch.rand(3), rng),
    "torch seed": (lambda: torch.manual_seed(99), rng),
    "numpy random": (lambda: np.random.rand(3), rng),
    "python random": (lambda: random.random(), rng),
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "default device": (
        lambda: torch.set_default_device("meta"),
        lambda: (torch.get_default_device(), torch.overrides._get_current_function_mode()),
    ),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
    ),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "matmul precision": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "cudnn benchmark": (lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
    "cudnn deterministic": (lambda: setattr(torch.backends.cudnn, "deterministic", True), lambda: torch.backends.cudnn.deterministic),
    "tf32": (lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True), lambda: torch.backends.cuda.matmul.allow_tf32),
    "autocast": (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")),
    "autocast dtype": (lambda: torch.set_autocast_dtype("cpu", torch.float16), lambda: torch.get_autocast_dtype("cpu")),
    "autocast cache": (lambda: torch.set_autocast_cache_enabled(False), torch.is_autocast_cache_enabled),
    "numpy errors": (lambda: np.seterr(all="raise"), np.geterr),
}


@pytest.mark.parametrize("ending", ["normal", "exception", "interrupt"])
@pytest.mark.parametrize("name", CHANGES)
def test_global_state_is_put_back(name: str, ending: str) -> None:
    change, read = CHANGES[name]
    with untouched():  # the tests of this file leave no trace either
        before = read()
        error = {"exception": ValueError, "interrupt": KeyboardInterrupt}.get(ending)
        try:
            with untouched():
                change()
                assert read() != before, "the test changes nothing"
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            assert error is not None
        assert read() == before


def test_exceptions_pass_through() -> None:
    with pytest.raises(KeyboardInterrupt), untouched():
        raise KeyboardInterrupt


def test_nothing_is_set_that_was_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting determinism imports torch's compiler: a second of CPU time in each scan."""
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: pytest.fail("set without need"))
    with untouched():
        pass


@pytest.mark.parametrize(("before", "layers", "within"), [(700, 500, OBJECTS * 501), (700, 3, 700), (0, 500, 0)])
def test_cycles_are_looked_for_in_proportion_to_the_model(before: int, layers: int, within: int) -> None:
    every, *others = gc.get_threshold()
    gc.set_threshold(before, *others)
    try:
        with pytest.raises(KeyError), fewer_collections(nn.Sequential(*(nn.Identity() for _ in range(layers)))):
            assert gc.get_threshold()[0] == within
            raise KeyError
        assert gc.get_threshold() == (before, *others)
    finally:
        gc.set_threshold(every, *others)


def through_gradcheck(text: str) -> None:
    """As torch's warnings of a call that gradcheck passes on: their file is gradcheck's."""
    warnings.warn_explicit(text, UserWarning, process_state.__file__, 1)
