"""The batch of a spike as a file: plain tensors and numbers, which torch reads with `weights_only=True`."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradcheck.errors import TargetError

FORMAT = 1
PLAIN = (int, float, bool, str, bytes, type(None))


def random_states() -> dict[str, Any]:
    """Random states of torch on the CPU and on CUDA, of Python and of numpy."""
    version, numbers, gauss = random.getstate()
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, place, has_gauss, gauss = numpy.random.get_state()
        states["numpy"] = [str(kind), [int(k) for k in keys], int(place), int(has_gauss), float(gauss)]
    return states


def restore_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states:
        import numpy as np

        kind, keys, place, has_gauss, gauss = states["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, gauss))


def plain(batch: Any) -> Any:
    """Containers of tensors as dicts, lists and tuples; other values that are not plain are left out."""
    if isinstance(batch, torch.Tensor):
        return batch.detach().clone()
    if isinstance(batch, tuple):
        return tuple(map(plain, batch))
    if isinstance(batch, list):
        return [plain(x) for x in batch]
    if hasattr(batch, "items"):
        return {str(k): plain(v) for k, v in batch.items()}
    return batch if isinstance(batch, PLAIN) else None


def like(batch: Any, saved: Any) -> Any:
    """What was saved, in the structure of a batch of the loader. Raises ValueError if it is not like one."""
    if isinstance(batch, torch.Tensor) and isinstance(saved, torch.Tensor):
        if batch.dtype != saved.dtype or batch.dim() != saved.dim():
            raise ValueError
        return saved.clone()
    if isinstance(batch, list | tuple) and isinstance(saved, list | tuple) and len(batch) == len(saved):
        inside = [like(b, s) for b, s in zip(batch, saved, strict=True)]
        return type(batch)(*inside) if hasattr(batch, "_fields") else type(batch)(inside)
    if hasattr(batch, "items") and isinstance(saved, dict) and {str(k) for k in batch} == set(saved):
        inside_of: dict[Any, Any] = {k: like(v, saved[str(k)]) for k, v in batch.items()}
        make: Callable[..., Any] = type(batch)
        return make(inside_of)
    if isinstance(batch, PLAIN):
        return batch if saved is None else saved
    raise ValueError


def load(path: Path) -> dict[str, Any]:
    """Raises TargetError for any other file."""
    hint = "a file that `gradcheck watch --keep-spikes N` has kept, such as .gradcheck/spikes/step-700.pt"
    if not path.is_file():
        raise TargetError(f"there is no file {path}", hint=hint)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it did not write
        raise TargetError(f"{path} is not the batch of a spike", hint=hint) from error
    if not isinstance(saved, dict) or "gradcheck" not in saved:
        raise TargetError(f"{path} is not the batch of a spike", hint=hint)
    if saved["gradcheck"] != FORMAT:
        raise TargetError(f"{path} was kept by another version of gradcheck", hint="update gradcheck")
    if saved["model"] is None:
        hint = "its batch alone: torch.load(FILE, weights_only=True)['batch']"
        raise TargetError(f"{path} holds no state of the model, which was too large or not of tensors alone", hint=hint)
    return saved
