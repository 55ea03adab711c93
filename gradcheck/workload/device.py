"""Device and dtype: where things go, moving them there, and back to the host with one wait for many tensors. And how much memory a
training takes, told before it runs.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.workload.dtensor import whole
from gradcheck.workload.tensors import map_structure


def on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors on the CPU, in their order, with one transfer from each device. Those that are there already are taken as they are."""
    found = [whole(t).detach() for t in tensors]
    for device in {t.device for t in found if not t.is_cpu}:
        there = [i for i, t in enumerate(found) if t.device == device]
        for i, t in zip(there, _moved([found[i] for i in there]), strict=True):
            found[i] = t
    return found


def in_groups(groups: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """Several lists of tensors on the CPU, with one transfer from each device."""
    arrived = iter(on_host([t for group in groups for t in group]))
    return [[next(arrived) for _ in group] for group in groups]


def _moved(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors of one device as bytes in a row: wide types first, so that each is aligned for its type."""
    order = sorted(range(len(tensors)), key=lambda i: (-tensors[i].element_size(), str(tensors[i].dtype)))
    joined = [torch.cat([tensors[i].reshape(-1) for i in same]) for _, same in groupby(order, key=lambda i: tensors[i].dtype)]
    whole = joined[0].cpu() if len(joined) == 1 else torch.cat([t.view(torch.uint8) for t in joined]).cpu()
    found = list(tensors)
    start = 0
    for i in order:
        t = tensors[i]
        size = t.numel() * (1 if len(joined) == 1 else t.element_size())
        part = whole[start : start + size]
        found[i] = (part if len(joined) == 1 else part.view(t.dtype)).view(t.shape)
        start += size
    return found


def as_numbers(scalars: Sequence[torch.Tensor]) -> list[float]:
    """Tensors of one entry each as numbers, with one transfer from each device."""
    if not scalars:
        return []
    first = scalars[0]
    if all(t.dtype is first.dtype and t.device == first.device and t.dim() == first.dim() for t in scalars):
        return torch.stack(list(scalars)).reshape(-1).tolist()
    return [float(t) for t in on_host(scalars)]


FLOATS = {
    "float32": torch.float32,
    "float": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
    "double": torch.float64,
    "fp64": torch.float64,
    "float16": torch.float16,
    "half": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def accelerator() -> str | None:
    """Type of the accelerator of this process, "cuda" for one; None where there is none."""
    home = getattr(torch, "accelerator", None)
    if home is None or not home.is_available():
        return None
    device = home.current_accelerator()
    return device.type if device is not None and device.type != "cpu" else None


def accelerator_in_use() -> Any:
    """The module of the accelerator (`torch.cuda`, `torch.xpu`, ...), once this process has used it; None before."""
    kind = accelerator()
    module = torch.get_device_module(kind) if kind is not None else None
    is_initialized = getattr(module, "is_initialized", None)
    return module if is_initialized is None or is_initialized() else None


@functools.cache
def _may_capture() -> Any:
    kind = accelerator()
    module = torch.get_device_module(kind) if kind is not None else None
    return module if hasattr(module, "is_current_stream_capturing") else None


def is_capturing() -> bool:
    """Whether the accelerator is recording a graph of operations: nothing may be read from it meanwhile."""
    module = _may_capture()
    return module is not None and module.is_initialized() and bool(module.is_current_stream_capturing())


def autocast_kinds() -> tuple[str, ...]:
    """Device types for which autocast may be on."""
    kind = accelerator()
    return ("cpu",) if kind is None else ("cpu", kind)


def synchronize(device: torch.device) -> None:
    """Waits for what was asked of a device."""
    if device.type not in ("cpu", "meta"):
        wait = getattr(torch.get_device_module(device.type), "synchronize", None)
        if wait is not None:
            wait()


def choose_device(name: str) -> torch.device:
    """ "auto" is the accelerator if there is one, else the CPU. Raises TargetError when the device is unknown or absent."""
    if name == "auto":
        return torch.device(accelerator() or "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TargetError(f"unknown device {name!r}", hint="choose auto, cpu, cuda, cuda:1, mps or xpu") from error
    if not _is_there(device):
        raise TargetError(f"there is no device {name}", hint="choose --device cpu or auto")
    return device


def _is_there(device: torch.device) -> bool:
    if device.type in ("cpu", "meta"):
        return True
    try:
        module = torch.get_device_module(device.type)
        return module.is_available() and (device.index or 0) < module.device_count()
    except Exception:  # modules of absent devices raise all kinds of errors
        return False


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether tensors on a device can be float64: MPS, some XPUs and NPUs lack it. Asked once a device."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def ends(tensor: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest entry, in one read where the device has it."""
    try:
        low, high = torch.aminmax(tensor) if dim is None else torch.aminmax(tensor, dim=dim)
    except NotImplementedError:
        low, high = (tensor.amin(), tensor.amax()) if dim is None else (tensor.amin(dim), tensor.amax(dim))
    return low, high


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """As float64; as float32 on devices without it."""
    return tensor.double() if tensor.is_cpu or has_float64(tensor.device) else tensor.float()


def choose_dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in FLOATS:
        raise TargetError(f"unknown dtype {name!r}", hint="choose float32, float64, bf16 or fp16")
    return FLOATS[name]


def place_module(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> dict[torch.Tensor, torch.Tensor]:
    """Moves in place. Returns the parameters that became new objects, which happens on some devices. Raises TargetError."""
    before = dict(module.named_parameters())
    try:
        if device is not None and any(t.device != device for t in (*module.parameters(), *module.buffers())):
            module.to(device)
        if dtype is not None:
            module.to(dtype)
    except (RuntimeError, NotImplementedError, TypeError, AssertionError, ImportError) as error:
        raise TargetError(f"the model cannot be moved to {device}: {error}", hint="choose another --device or --dtype") from error
    return {before[name]: p for name, p in module.named_parameters() if before[name] is not p}


def place_optimizer(optimizer: torch.optim.Optimizer, moved: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Puts moved parameters into the optimizer's groups, and moves its state of each parameter to the parameter's device."""
    for group in optimizer.param_groups:
        group["params"] = [moved.get(p, p) for p in group["params"]]
    for old in [p for p in optimizer.state if p in moved]:
        optimizer.state[moved[old]] = optimizer.state.pop(old)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = value.to(parameter.device)


def place_batch(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch on the device; with a dtype, its floating-point tensors in it. Leaves that require gradient are copied, to keep theirs."""

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if item.requires_grad and item.is_leaf:
                item = item.detach().clone().requires_grad_()
            return item.to(device, dtype) if dtype is not None and item.is_floating_point() else item.to(device)
        return item.to(device) if hasattr(item, "to") and not isinstance(item, type) else item

    return map_structure(move, batch)


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
