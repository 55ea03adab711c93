"""The batch that a loop is training on, and which samples are in it, as torch's DataLoader gives them. Nothing is copied."""

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from gradcheck.instrument.patches import Patches

ENDS = 4096  # numbers at each end of a tensor that are looked at


def digest(tensor: torch.Tensor) -> int:
    """A digest of the shape and of the numbers at both ends. Waits for the device."""
    return hash((shape_of(tensor), *map(_bytes, _dense_parts(tensor))))


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """For a nested tensor, only the number of its parts."""
    return (tensor.size(0),) if tensor.is_nested else tuple(tensor.shape)


def _dense_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Dense tensors that hold the numbers of a tensor of any layout."""
    if tensor.is_nested:
        return tuple(tensor.unbind())
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    return (tensor.values(),)


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if flat.numel() > 2 * ENDS:
        flat = torch.cat([flat[:ENDS], flat[-ENDS:]])
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


KEPT = 3  # batches: a framework may fetch the next one before it trains on this one
_Function = Callable[..., Any]


@dataclass(eq=False, slots=True)
class Fetched:
    batch: Any
    index: Any = ()  # of its samples, as the sampler gave them

    @property
    def samples(self) -> tuple[int, ...]:
        """Indices in the data set; () where the loader does not say them."""
        found = tuple(self.index) if isinstance(self.index, list | tuple) else (self.index,)
        return found if all(isinstance(i, int) and not isinstance(i, bool) for i in found) else ()


@dataclass(eq=False)
class _Iterator:
    """What one pass over a loader has given so far."""

    ordered: bool  # every index that it has asked for is known, and its batches come in their order
    asked: deque[Any] = field(default_factory=deque)
    given: deque[Fetched] = field(default_factory=lambda: deque(maxlen=KEPT))
    count: int = 0
    ahead: int | None = None  # batches that are fetched before they are trained on; None: not yet known


class LoaderBatches:
    """`install`, `remove`, both at any time and twice. `fetched` is called after each batch."""

    def __init__(self) -> None:
        self.fetched: Callable[[], None] | None = None
        self._patches: Patches | None = None
        self._known: weakref.WeakKeyDictionary[Any, _Iterator] = weakref.WeakKeyDictionary()
        self._current: _Iterator | None = None  # gave the last batch
        self._last: Callable[[], Any] = lambda: None  # what was asked for last in `_known`, and what was found
        self._found = _Iterator(True)

    def install(self) -> None:
        if self._patches is None:
            self._patches = Patches()
            for name, make in (("__init__", self._beginning), ("_next_index", self._asking), ("__next__", self._giving)):
                self._patches.wrap(_BaseDataLoaderIter, name, make)

    def remove(self) -> None:
        if self._patches is not None:
            self._patches.undo()
        self._patches = self._current = None
        self._known.clear()
        self._last, self._found = (lambda: None), _Iterator(True)

    def begin_backward(self) -> None:
        """To be called before a backward pass: the first one shows how far the loader is ahead of the training."""
        one = self._current
        if one is not None and one.ahead is None:
            one.ahead = one.count - 1
            one.given = deque(one.given, maxlen=min(KEPT, one.count))  # what is over is no longer held

    @property
    def current(self) -> Fetched | None:
        """What is being trained on, if that can be told."""
        one = self._current
        if one is None or one.ahead is None or one.ahead >= len(one.given):
            return None
        return one.given[-1 - one.ahead]

    def _beginning(self, original: _Function) -> _Function:
        def begin(iterator: Any, *args: Any, **kwargs: Any) -> None:
            self._known[iterator] = _Iterator(True)
            original(iterator, *args, **kwargs)
            self._known[iterator].ordered = bool(getattr(args[0] if args else None, "in_order", True))

        return begin

    def _of(self, iterator: Any) -> _Iterator:
        if self._last() is iterator:
            return self._found
        found = self._known.get(iterator)
        if found is None:  # it began before anyone listened
            found = self._known[iterator] = _Iterator(not isinstance(iterator, _MultiProcessingDataLoaderIter))
            found.ahead, found.given = 0, deque(maxlen=1)
        self._last, self._found = weakref.ref(iterator), found
        return found

    def _asking(self, original: _Function) -> _Function:
        def ask(iterator: Any) -> Any:
            index = original(iterator)
            self._of(iterator).asked.append(index)
            return index

        return ask

    def _giving(self, original: _Function) -> _Function:
        def give(iterator: Any) -> Any:
            one = self._of(iterator)
            try:
                batch = original(iterator)
            except StopIteration:
                one.ahead = max(0, one.ahead - 1) if one.ahead is not None else None
                raise
            index = one.asked.popleft() if one.asked else None
            one.given.append(Fetched(batch, index if one.ordered else ()))
            one.count += 1
            self._current = one
            if self.fetched is not None:
                self.fetched()
            return batch

        return give
