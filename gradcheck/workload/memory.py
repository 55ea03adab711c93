"""How much memory training a model takes, told before it runs, and how much there is."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

GB = 1e9
# Tensors of a parameter's size that an optimizer will keep for it, if it has none yet; one for other optimizers.
_TWO = re.compile(r"adam|lamb|adan|yogi|adabelief", re.IGNORECASE)


@dataclass(frozen=True)
class Memory:
    """Bytes. `activations`: of all samples of a batch; None: not known."""

    parameters: int
    gradients: int
    state: int
    optimizer: str
    activations: float | None = None

    @property
    def fixed(self) -> int:
        """Whatever the batch."""
        return self.parameters + self.gradients + self.state

    @property
    def text(self) -> str:
        more = f", {gigabytes(self.activations)} of activations" if self.activations is not None else "; activations come on top"
        whole = self.fixed + (self.activations or 0.0)
        parts = f"{gigabytes(self.parameters)} of parameters, {gigabytes(self.gradients)} of gradients, "
        return f"{gigabytes(whole)}: {parts}{gigabytes(self.state)} of state of {self.optimizer}{more}"


def gigabytes(count: float) -> str:
    return f"{count / GB:,.0f} GB" if count >= 100 * GB else f"{count / GB:.3g} GB"


def memory_of(model: nn.Module, optimizer: torch.optim.Optimizer, activations: float | None = None) -> Memory:
    """Of one training of the model."""
    trained = [p for p in model.parameters() if p.requires_grad and not nn.parameter.is_lazy(p)]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return Memory(_bytes(model.parameters()), _bytes(trained), _state(optimizer, held), type(optimizer).__name__, activations)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if not nn.parameter.is_lazy(t))


def _state(optimizer: torch.optim.Optimizer, held: list[torch.Tensor]) -> int:
    kept = [t for state in optimizer.state.values() if isinstance(state, dict) for t in state.values() if isinstance(t, torch.Tensor)]
    first: dict[str, Any] = optimizer.param_groups[0] if optimizer.param_groups else {}
    name = type(optimizer).__name__
    each = 2 if _TWO.search(name) else int(bool(first.get("momentum"))) if name == "SGD" else 1
    return max(_bytes(kept), each * _bytes(held))


@contextmanager
def counting_saved(model: nn.Module, counts: list[int]) -> Iterator[None]:
    """While active, appends the bytes of what autograd keeps for the backward pass, each storage once, without the model's own tensors.

    No backward pass may follow.
    """
    seen: dict[int, tuple[torch.UntypedStorage, int]] = {}
    own = {_place(t) for t in (*model.parameters(), *model.buffers()) if _is_plain(t)}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _is_plain(tensor) and _place(tensor) not in own:
            before = seen.get(_place(tensor), (None, 0))[1]
            seen[_place(tensor)] = tensor.untyped_storage(), before + tensor.numel() * tensor.element_size()
        return tensor.detach()  # otherwise each holds the one before it, and thousands are freed recursively

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    counts.append(sum(min(storage.nbytes(), used) for storage, used in seen.values()))  # some are slices of what exists anyway


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided


def _place(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device, or the CPU's memory, has left; None where that is not known."""
    if device.type == "cpu":
        return _free_of_host()
    known = getattr(torch.get_device_module(device.type), "mem_get_info", None)
    return int(known(device)[0]) if known is not None else None


def _free_of_host() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):  # not on Linux
        return None
    try:  # a container may be given less
        most, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, most - used))
