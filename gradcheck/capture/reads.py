"""What the loaders of a script can read of its data, and whether reading changes the data."""

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import Subset, WeightedRandomSampler, get_worker_info
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from gradcheck.instrument.patches import Patches
from gradcheck.instrument.running_code import here
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopReads
from gradcheck.workload.rng import host_states, put_back, put_back_host, torch_states
from gradcheck.workload.source_sites import location_of_frame, origin_of

FETCHES = 4  # that are looked at: data that reading changes, the first one changes
MOST_ENTRIES = 1 << 20  # of the row that is compared


class Reads:
    """`install` it with the other patches of a recording."""

    def __init__(self) -> None:
        self._fetches = 0
        self._made: dict[int, tuple[WeightedRandomSampler, Location | None]] = {}
        self._changed: tuple[Location | None] | None = None

    def install(self, patches: Patches) -> None:
        patches.wrap(WeightedRandomSampler, "__init__", self._making)
        patches.wrap(_MapDatasetFetcher, "fetch", self._fetching)

    def found(self, loaders: list[Any]) -> LoopReads | None:
        """None where every sample can be drawn, and stays as it is."""
        changed = self._changed is not None
        for loader in loaders:
            sampler: Any = getattr(loader, "sampler", None)
            size = _size(getattr(loader, "dataset", None)) if isinstance(sampler, WeightedRandomSampler) else 0
            if size > len(getattr(sampler, "weights", ())):
                place = self._made.get(id(sampler), (None, None))[1]
                return LoopReads(len(sampler.weights), size, place, changed, self._changed[0] if self._changed else None)
        return LoopReads(changed=True, changed_site=self._changed[0]) if self._changed else None

    def _making(self, original: Callable[..., None]) -> Callable[..., None]:
        def make(sampler: WeightedRandomSampler, *args: Any, **kwargs: Any) -> None:
            original(sampler, *args, **kwargs)
            self._made[id(sampler)] = sampler, here()

        return make

    def _fetching(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def fetch(fetcher: Any, index: Any) -> Any:
            if self._fetches >= FETCHES or self._changed or get_worker_info() is not None:
                return original(fetcher, index)
            self._fetches += 1
            try:
                data, number = _innermost(fetcher.dataset, index[0] if isinstance(index, (list, tuple)) and index else index)
                rows = list(_rows(data, number))
            except Exception:  # data sets of others have lengths and indices of their own
                return original(fetcher, index)
            before = [row.copy() for row in rows]
            states = host_states(), torch_states()
            batch = original(fetcher, index)
            changed = [row for row, old in zip(rows, before, strict=True) if not _equal(row, old)]
            if changed:
                self._confirm(data, number, changed[0], states)
            return batch

        return fetch

    def _confirm(self, data: Any, number: Any, row: np.ndarray[Any, Any], states: tuple[Any, Any]) -> None:
        """A second reading, with the random numbers of the first one, changes it again, and gives what it changed it to."""
        old, later = row.copy(), (host_states(), torch_states())
        put_back_host(states[0])
        put_back(states[1])
        tracing, trace = sys.gettrace(), _Trace(row)
        try:
            sys.settrace(trace.call)
            item = data[number]
        except Exception:  # what it raises, it raises in the loop as well, or not at all
            return
        finally:
            sys.settrace(tracing)
            put_back_host(later[0])
            put_back(later[1])
        with torch._C.DisableTorchFunction():
            leaves = [np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x) for x in pytree.tree_leaves(item) if _is_array(x)]
        given = any(_equal(x.reshape(-1), row.reshape(-1)) for x in leaves if x.size == row.size)
        if given and not _equal(row, old):
            self._changed = (trace.place,)
        row[...] = old


class _Trace:
    """The line of the user's code that changes a row."""

    def __init__(self, row: np.ndarray[Any, Any]) -> None:
        self.row, self.before = row, row.copy()
        self.place: Location | None = None
        self._last: Location | None = None

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if origin_of(frame.f_code.co_filename) == "user" else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.place is None and not _equal(self.row, self.before):
            self.place = self._last
        self._last = location_of_frame(frame)
        return self._line


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and value.layout is torch.strided)


def _size(data: Any) -> int:
    try:
        return len(data)
    except Exception:  # a data set may have a length that it cannot tell
        return 0


def _innermost(data: Any, number: Any) -> tuple[Any, Any]:
    while isinstance(data, Subset):
        data, number = data.dataset, data.indices[number]
    return data, number


def _rows(data: Any, number: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Views of what the attributes of a data set hold for a sample."""
    for value in [v for v in vars(data).values() if isinstance(v, (list, np.ndarray, torch.Tensor)) and len(v) == len(data)]:
        row = value[number]
        if isinstance(row, torch.Tensor) and not row.requires_grad and row.device.type == "cpu" and row.layout is torch.strided:
            row = row.numpy() if row.dtype is not torch.bfloat16 else None
        if isinstance(row, np.ndarray) and row.dtype != object and 1 < row.size <= MOST_ENTRIES:
            yield row


def _equal(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f" and other.dtype.kind == "f")
