"""Tensors that are not in use, away from where they are trained: in the host's memory, or in a file that is mapped into it."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch

from gradcheck.errors import TargetError
from gradcheck.workload.device import free_memory, gigabytes
from gradcheck.workload.tensors import tensors_in

ALIGNED = 64  # bytes between the starts of two tensors in a file are a multiple of it
WORTH = 1 << 12  # bytes: smaller tensors of an optimizer, such as counts of steps, stay where they are
AT_ONCE = 64 << 20  # bytes that are read from files before their pages are given back
ROOM = 0.8  # of the host's free memory that may be taken before a file is

Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # tensors, and values of theirs on the CPU

_maps: weakref.WeakSet[_Map] = weakref.WeakSet()


class _Map(mmap.mmap):
    """Of a file without a name: nothing of it is left once no tensor refers to it, however the process ends."""


def set_aside(tensors: Sequence[torch.Tensor], *, files: bool) -> list[torch.Tensor]:
    """Copies on the CPU. `files`: those of tensors of the CPU, and of all where the host lacks room, lie in a file.

    Raises TargetError where the disk lacks room, too.
    """
    size = sum(map(_memory, tensors))
    free = free_memory(torch.device("cpu")) if files else None
    short = free is not None and size > ROOM * free
    filed = [i for i, t in enumerate(tensors) if files and (t.is_cpu or short) and t.numel() and is_plain(t)]
    found = dict(zip(filed, _in_file([tensors[i] for i in filed]), strict=True))
    return [found[i] if i in found else t.detach().to("cpu", copy=True) for i, t in enumerate(tensors)]


def _memory(tensor: torch.Tensor) -> int:
    """In bytes: `nbytes` raises for sparse tensors."""
    return tensor.numel() * tensor.element_size()


def is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor.data) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized


def with_values(tensors: Iterable[torch.Tensor]) -> Pairs:
    """Large tensors, each the whole of its memory, with their values set aside: to be emptied, and filled later."""
    ours = [t for t in {id(t): t for t in tensors}.values() if is_plain(t) and WORTH <= t.nbytes == t.untyped_storage().nbytes()]
    return list(zip(ours, set_aside(ours, files=True), strict=True))


def empty(pairs: Pairs) -> None:
    for tensor, _ in pairs:
        tensor.data = tensor.data.new_empty(0)


def fill(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Puts values into tensors, each in memory of its own."""
    for tensor, values in dropping(pairs):
        tensor.data = values.to(tensor.device, copy=True)


def state_of(optimizer: torch.optim.Optimizer | None) -> Iterator[torch.Tensor]:
    """What it remembers of the parameters."""
    return tensors_in(list(optimizer.state.values()), 4) if optimizer is not None else iter(())


def dropping(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs, and the pages of files that were read on the way are given back."""
    read = 0
    for pair in pairs:
        yield pair
        read += _memory(pair[1])
        if read > AT_ONCE:
            drop_pages()
            read = 0
    drop_pages()


def drop_pages() -> None:
    """The system reads them again where they are asked for."""
    for each in _maps if hasattr(mmap, "MADV_DONTNEED") else ():
        each.madvise(mmap.MADV_DONTNEED)


def _in_file(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if not tensors:
        return []
    starts, end = [], 0
    for t in tensors:
        starts.append(end)
        end += -(-t.nbytes // ALIGNED) * ALIGNED
    with tempfile.TemporaryFile() as file:
        try:
            with contextlib.suppress(AttributeError):  # not on Windows
                os.posix_fallocate(file.fileno(), 0, end)  # a map over a file that cannot grow ends the process
            for start, t in zip(starts, tensors, strict=True):
                file.seek(start)
                file.write(_bytes(t).numpy().data)
            file.truncate(end)
            file.flush()
        except OSError as error:
            what = f"{tempfile.gettempdir()} has no room for {gigabytes(end)} that are set aside: {error.strerror}"
            raise TargetError(what, hint="set TMPDIR to a folder on a larger disk") from error
        held = _Map(file.fileno(), end)
    _maps.add(held)
    whole = torch.frombuffer(held, dtype=torch.uint8)
    pairs = zip(starts, tensors, strict=True)
    found = [whole[start : start + t.nbytes].view(t.dtype).view(t.shape).requires_grad_(False) for start, t in pairs]
    drop_pages()
    return found


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """[bytes], of a tensor of the host without a copy where its memory is dense."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
