"""A pretend accelerator: plain tensors of device `acc`, whose memory is the CPU's. Importing this module installs it for good.

An operation on `acc` relabels the memory of its tensors as the CPU's, by way of DLPack, runs the CPU's kernel, and relabels what
that returns. So sizes, strides, storages and autograd are real, and the device is as strange as a GPU where it matters: it has
random numbers of its own, takes no CPU tensors beside its own, and `ledger` counts what it is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.device import cells
from tests.device.backend import Backend
from tests.device.ledger import launch, wait

NAME = "acc"
CPU, EXTENSION = 1, 12  # device types of DLPack; torch reads the second one as PrivateUse1
aten = torch.ops.aten
absent: set[torch.dtype] = set()  # dtypes that the device lacks: float64 makes it like MPS

# Operations whose result has a shape, or an error, that depends on values: the host reads it back.
READ_BACK = frozenset(
    """nonzero masked_select _unique _unique2 unique_dim unique_consecutive bincount equal is_nonzero histc linalg_eig
    linalg_eigh _linalg_eigh linalg_svd _linalg_svd linalg_inv linalg_cholesky linalg_solve""".split()
)
VIEWS = "view as_strided unfold view_as_real view_as_complex _reshape_alias".split()  # all other views are made of these
NO_LAUNCH = frozenset(("empty", "empty_strided", "resize_", "set_"))
INDEXED = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))  # take CPU indices


# -------------------------------------------------------------------------------------------------------------- one memory, two names
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _relabelled(tensor: torch.Tensor, kind: int) -> torch.Tensor:
    if tensor.is_conj():
        return _relabelled(tensor.conj(), kind).conj()
    if tensor.is_neg():
        return _relabelled(tensor._neg_view(), kind)._neg_view()
    capsule = torch._C._to_dlpack(tensor)
    address = _pointer(capsule, b"dltensor")
    assert address is not None
    ctypes.c_int32.from_address(address + 8).value = kind  # behind the data pointer: device type and index
    ctypes.c_int32.from_address(address + 12).value = 0
    other = torch._C._from_dlpack(capsule)
    if other.stride() != tensor.stride():  # DLPack invents those of axes of length 1
        other = _view(aten.as_strided.default, other, tensor.shape, tensor.stride(), other.storage_offset())
    return other


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return _relabelled(tensor, CPU)


def _device(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in absent:
        raise TypeError(f"Cannot convert a {NAME} Tensor to {tensor.dtype}: the device does not support it")
    if tensor.layout is not torch.strided:
        raise NotImplementedError(f"{NAME} has no {tensor.layout} tensors")
    return _relabelled(tensor, EXTENSION)


def _ours(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.device.type == NAME


def _size(tensor: torch.Tensor) -> int:
    """Bytes; an expanded axis counts once."""
    count = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count


_CAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    """The device's own work, which neither the program's modes nor its autocast on the CPU reach."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch._C._ExcludeDispatchKeyGuard(_CAST):
        yield


def _view(op: Any, *args: Any, **kwargs: Any) -> Any:
    with _inside():
        return op._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)


# ------------------------------------------------------------------------------------------------------------------ any operation
@dataclass(frozen=True)
class _Signature:
    name: str
    arguments: tuple[str, ...]
    tensors: tuple[bool, ...]  # which arguments are one tensor
    written: tuple[int, ...]  # arguments that are written to
    returns: tuple[int | None, ...]  # for each result the argument that it is
    is_view: bool
    random: bool


@functools.cache
def _signature(op: Any) -> _Signature:
    schema = op._schema
    aliases = [(i, a.alias_info) for i, a in enumerate(schema.arguments) if a.alias_info is not None]
    written = {s: i for i, alias in aliases if alias.is_write for s in alias.before_set}
    sets = [r.alias_info.before_set if r.alias_info is not None else () for r in schema.returns]
    returns = tuple(next((written[s] for s in found if s in written), None) for found in sets)
    return _Signature(
        schema.name.removeprefix("aten::"),
        tuple(a.name for a in schema.arguments),
        tuple(str(a.type) in ("Tensor", "Optional[Tensor]") for a in schema.arguments),
        tuple(sorted(set(written.values()))),
        returns,
        any(not alias.is_write for _, alias in aliases),
        torch.Tag.nondeterministic_seeded in op.tags,
    )


class _Relabelled:
    """The arguments of a call as the CPU's, and what was seen of them."""

    def __init__(self) -> None:
        self.read, self.foreign = 0, False

    def __call__(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            if x.device.type == NAME:
                self.read += _size(x)
                return _host(x)
            self.foreign = self.foreign or x.dim() > 0
            return x
        if isinstance(x, (list, tuple)):
            return [self(y) for y in x]
        if isinstance(x, torch.device):
            return torch.device("cpu")
        if isinstance(x, torch.Generator):
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{x.device.type}'")
        return x


def _kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    with _inside():
        return _run(op, _signature(op), args, kwargs)


def _run(op: Any, sign: _Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if sign.is_view and None in sign.returns:
        raise NotImplementedError(f"{op}: a view that {NAME} does not know")
    given = {**dict(zip(sign.arguments, args, strict=False)), **kwargs}
    relabel = _Relabelled()
    inner = [relabel(x) for x in args]
    named = {k: relabel(x) for k, x in kwargs.items() if k != "pin_memory"}
    if relabel.foreign:
        if sign.name not in INDEXED:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu!")
        wait("h2d")
    _waits(op, sign, given)
    if sign.name == "_local_scalar_dense":
        return op(*inner)
    fresh = []  # empty `out=` tensors, which the operation resizes
    for i in sign.written:
        name = sign.arguments[i]
        if name != "self" and _ours(given.get(name)) and not given[name].numel():
            named[name] = torch.empty(0, dtype=given[name].dtype)
            fresh.append((given[name], named[name]))
            del inner[i:]
    # A number where the schema has a tensor: the packet finds the overload for numbers.
    number = any(t and isinstance(x, (bool, int, float, complex)) for x, t in zip(inner, sign.tensors, strict=False))
    with _own_numbers(sign.random):
        result = (op.overloadpacket if number else op)(*inner, **named)
    for x, new in fresh:
        _adopt(x, _device(new))
    results = result if len(sign.returns) > 1 else [result]
    outer = [_outer(x) if at is None else given[sign.arguments[at]] for x, at in zip(results, sign.returns, strict=False)]
    if sign.name not in NO_LAUNCH:
        made = [outer] if None in sign.returns else [given.get(sign.arguments[i]) for i in sign.written]
        launch(sign.name, relabel.read, _sizes(made))
    return tuple(outer) if len(sign.returns) > 1 else outer[0] if outer else None


def _outer(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return _device(x)
    return [_outer(y) for y in x] if isinstance(x, (list, tuple)) else x


def _sizes(x: Any) -> int:
    if isinstance(x, (list, tuple)):
        return sum(map(_sizes, x))
    return _size(x) if isinstance(x, torch.Tensor) else 0


def _waits(op: Any, sign: _Signature, given: dict[str, Any]) -> None:
    if sign.name == "_local_scalar_dense":
        wait("item")
    elif sign.name in READ_BACK or (op is aten.repeat_interleave.Tensor and given.get("output_size") is None):
        wait(sign.name)
    elif sign.name in INDEXED:
        filled = sign.name != "index" and "values" in given and given["values"].numel() == 1  # becomes a masked fill
        if not filled and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in given["indices"]):
            wait("index by mask")


@contextlib.contextmanager
def _own_numbers(random: bool) -> Iterator[None]:
    """The device's random state in place of the CPU's."""
    if not random:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(module.generator.get_state())
    try:
        yield
    finally:
        module.generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


# ------------------------------------------------------------------------------------------------------------- special operations
def _adopt(tensor: torch.Tensor, other: torch.Tensor) -> None:
    _view(aten.set_.source_Storage_storage_offset, tensor, other.untyped_storage(), other.storage_offset(), other.shape, other.stride())


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    with _inside():
        to, of = (_host(x) if _ours(x) else x for x in (target, source))
        if not (_ours(source) and _ours(target)) and not non_blocking:
            wait("d2h" if _ours(source) else "h2d")
        to.copy_(of)
        launch("copy_", _size(source), _size(target))
    return target


def _to_copy(
    self: torch.Tensor, *, dtype: Any = None, device: Any = None, non_blocking: bool = False, memory_format: Any = None, **_: Any
) -> Any:
    with _inside():
        result = aten._to_copy.default(_host(self) if _ours(self) else self, dtype=dtype, memory_format=memory_format)
        launch("_to_copy", _size(self), _size(result))
        leaves = device is not None and device.type == "cpu"
        if (leaves or not _ours(self)) and not non_blocking:
            wait("d2h" if leaves else "h2d")
        return result if leaves else _device(result)


def _resize(self: torch.Tensor, size: Any, *, memory_format: Any = None) -> torch.Tensor:
    size = [int(s) for s in size]
    with _inside():
        fits = (torch.Size(size).numel() + self.storage_offset()) * self.element_size() <= self.untyped_storage().nbytes()
        if fits:
            strides = torch.empty(size, device="meta").stride()
            _view(aten.set_.source_Storage_storage_offset, self, self.untyped_storage(), self.storage_offset(), size, strides)
        else:
            _adopt(self, _device(torch.empty(size, dtype=self.dtype)))
    return self


def _set(self: torch.Tensor, source: Any, *rest: Any) -> torch.Tensor:
    with _inside():
        if isinstance(source, torch.Tensor):
            rest = rest or (source.storage_offset(), source.shape, source.stride())
            source = source.untyped_storage()
        offset, size, *more = rest or (0, (source.nbytes() // self.element_size(),))
        stride = more[0] if more and len(more[0]) == len(size) else torch.empty(size, device="meta").stride()
        _view(aten.set_.source_Storage_storage_offset, self, source, offset, size, stride)
    return self


def _fused(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel written for CPU tensors, as one launch."""

    def kernel(*args: Any) -> Any:
        with _inside():
            result = function(*(_host(x) if _ours(x) else x for x in args))
            launch(name, _sizes(list(args)), _sizes(list(result)))
            return tuple(x if x is None else _device(x) for x in result)

    return kernel


def _convolution(*args: Any) -> Any:
    return _kernel(aten.convolution.default, *args)


def _convolution_backward(grad: Any, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any) -> Any:
    bias = [weight.shape[1] * rest[1] if transposed else weight.shape[0]]
    return _kernel(aten.convolution_backward.default, grad, x, weight, bias, stride, padding, dilation, transposed, *rest)


def _autocast(op: Any, *args: Any, **kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype(NAME)
    cast = lambda x: x.to(dtype) if _ours(x) and x.dtype is torch.float32 else x  # noqa: E731
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return op(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})


# ------------------------------------------------------------------------------------------------------------------- installation
def _op(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _is_view(name: str) -> bool:
    return any(a.alias_info is not None and not a.alias_info.is_write for a in _op(name)._schema.arguments)


def _kernels() -> dict[str, Callable[..., Any]]:
    """A kernel for every operation that has one on the CPU."""
    special = {
        "copy_": _copy, "_to_copy": _to_copy, "resize_": _resize, "record_stream": lambda self, stream: None,
        "convolution_overrideable": _convolution, "convolution_backward_overrideable": _convolution_backward,
        "_copy_from": lambda source, target, non_blocking=False: _copy(target, source, non_blocking),
    }  # fmt: skip
    fused = {
        "_thnn_fused_lstm_cell": cells.lstm, "_thnn_fused_lstm_cell_backward_impl": cells.lstm_backward,
        "_thnn_fused_gru_cell": cells.gru, "_thnn_fused_gru_cell_backward": cells.gru_backward,
    }  # fmt: skip
    special |= {name: _fused(name, function) for name, function in fused.items()}
    special |= {f"set_.source_{kind}": _set for kind in ("Storage", "Storage_storage_offset", "Tensor", "Tensor_storage_offset")}
    special |= {name: functools.partial(_view, _op(name)) for name in VIEWS}
    found: dict[str, Callable[..., Any]] = {}
    for name in torch._C._dispatch_get_all_op_names():
        home, _, short = name.partition("::")
        if home != "aten":
            continue
        with contextlib.suppress(AttributeError):
            on_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") and not _is_view(short)
            if short in special or on_cpu or short.startswith("_foreach_"):
                found[short] = special.get(short) or functools.partial(_kernel, _op(short))
    return found


def _patch_storages() -> None:
    """torch would ask C++ for the device's allocator, which Python cannot give."""
    clone, to = torch.storage._StorageBase.clone, torch.storage._StorageBase.to

    def as_bytes(storage: Any) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def clone_storage(self: Any) -> Any:
        return as_bytes(self).clone().untyped_storage() if self.device.type == NAME else clone(self)

    def storage_to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        if torch.device(device).type != NAME or self.device.type == NAME:
            return to(self, device=device, non_blocking=non_blocking)
        return as_bytes(self).to(device).untyped_storage()

    torch.UntypedStorage.clone, torch.UntypedStorage.to = clone_storage, storage_to  # type: ignore[method-assign]


def _install() -> list[torch.library.Library]:
    _setup_privateuseone_for_python_backend(NAME, module)
    every = torch.library.Library("_", "IMPL")
    ours, cast = (torch.library.Library("aten", "IMPL", key) for key in ("PrivateUse1", "AutocastPrivateUse1"))
    every.fallback(_kernel, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name, kernel in _kernels().items():
        with contextlib.suppress(RuntimeError):  # composite ones need none
            ours.impl(name, kernel)
    for name in "mm addmm bmm baddbmm linear matmul conv2d conv1d _convolution".split():
        packet = getattr(aten, name)
        for overload in packet.overloads():
            if "out" not in overload and "dtype" not in overload:
                op = getattr(packet, overload)
                cast.impl(op.name().removeprefix("aten::"), functools.partial(_autocast, op))
    torch.__future__.set_swap_module_params_on_conversion(True)  # as on CUDA, a parameter that moves stays the same object
    _patch_storages()
    return [every, ours, cast]


module = Backend()
_libraries = _install()  # they unregister when they are collected
