"""Which samples a loop trains on and which it only looks at. Samples are rows of its loaders' batches, told apart by content."""

import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler, Subset, WeightedRandomSampler

from gradcheck.capture.recording import Recording
from gradcheck.capture.structures import is_plain, tensors_in
from gradcheck.instrument.loop_hooks import LoopListener
from gradcheck.instrument.running_code import here
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopLeak

MOST_ROWS = 20_000  # of one dataset
ENTRIES = 512  # of each tensor of a row
WHOLE = 0.95  # of the training data: as many that are looked at are likely these themselves
FEWEST_NUMBERS = 4  # in a row: fewer tell no samples apart
MOST_REPEATED = 0.95  # share of rows that are drawn more than once, beyond which natural twins cannot be told from them
_OF_ALL = (RandomSampler, SequentialSampler, WeightedRandomSampler, DistributedSampler)  # draw from the whole of a dataset


@dataclass(eq=False)
class _Data:
    """A dataset, or the part of it that a sampler gives, and what came out of it."""

    source: tuple[Any, Any]  # kept, as the ids of both are its key
    site: Location | None
    trained: set[int] = field(default_factory=set)
    looked_at: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)  # of those that are looked at: what had been trained on,
    elsewhere: bool = False  # and by then was no longer: folds of one model
    rows: Counter[int] = field(default_factory=Counter)  # of the first pass,
    iterator: weakref.ref[Any] | None = None  # which this one makes

    @property
    def twins(self) -> float:
        """Share of the rows of the first pass that have a twin in it; one that is drawn twice is no twin of its own."""
        share = sum(n for n in self.rows.values() if n > 1) / max(1, self.rows.total())
        repeated = _repeated(self.source[0]) if share else 0.0
        return max(0.0, 1 - (1 - share) / (1 - repeated)) if repeated < MOST_REPEATED else share


@dataclass(eq=False)
class _Training:
    """What some weights were trained on: folds and fits one after another have weights of their own."""

    weights: set[int] = field(default_factory=set)
    rows: set[int] = field(default_factory=set)


class Leaks(LoopListener):
    """`fetched` is told of every batch that a loader gives."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._data: dict[tuple[int, int], _Data] = {}
        self._current, self._newest = _Training(), set[int]()  # `_newest`: rows of the data that were trained on last
        self._trainings = [self._current]
        self._waiting: tuple[_Data, list[int], int] | None = None  # rows of the last batch, and the backward passes before it

    def data_begun(self, loader: Any) -> None:
        source = loader.dataset, _part(loader._index_sampler)
        key = id(source[0]), id(source[1])
        if key not in self._data:
            self._data[key] = _Data(source, here())

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        weights = {id(p) for group in optimizer.param_groups for p in group["params"]}
        known = next((t for t in self._trainings if not t.weights or t.weights & weights), None)
        if known is None:
            self._trainings.append(known := _Training())
        known.weights |= weights
        self._current = known

    def fetched(self, iterator: Any, batch: Any) -> None:
        self._settle()
        data = self._data.get((id(iterator._dataset), id(_part(iterator._index_sampler))))
        if data is None or len(data.trained) + len(data.looked_at) >= MOST_ROWS:
            return
        rows = list(_rows(batch))
        size = getattr(iterator._index_sampler, "batch_size", None)
        if isinstance(size, int) and len(rows) > size and len(rows) % size:
            return  # what is joined along the first axis are parts of samples: the nodes of graphs, the tokens of texts
        if data.iterator is None:
            data.iterator = weakref.ref(iterator)
        if data.iterator() is iterator:
            data.rows.update(rows)
        self._waiting = data, rows, self.recording.backwards

    def _settle(self) -> None:
        if self._waiting is not None:
            data, rows, before = self._waiting
            self._waiting = None
            if self.recording.backwards > before:
                data.trained.update(rows)
                self._current.rows.update(rows)
                self._newest = data.trained
            else:
                data.looked_at.update(rows)
                data.shared |= self._current.rows.intersection(rows)
                data.elsewhere = not data.shared <= self._newest

    def found(self) -> LoopLeak | None:
        """Data that the loop only looks at, although most of them were trained on. None if there are none."""
        self._settle()
        trained = [d for d in self._data.values() if d.trained]
        others = [d for d in self._data.values() if d.looked_at and not d.trained]
        if not trained or not others:
            return None
        twins = max(d.twins for d in trained)
        told = [_leak(d, twins, trained) for d in others]
        clean = any(x.rows and x.shared / x.rows - x.twins <= 0 for x in told)
        own = [x for x, d in zip(told, others, strict=True) if x.rows and x.shared == x.rows and not d.elsewhere]
        left = [x for x in told if not (clean and x in own)]  # besides held-out data, evaluating on the training data is intended
        return max(left or told, key=lambda x: x.shared / max(1, x.rows))


def _part(sampler: Any) -> Any:
    """What picks a part of a dataset: the loader's sampler or its batch sampler's; None if all of it is used."""
    inner = getattr(sampler, "sampler", sampler)
    return None if isinstance(inner, _OF_ALL) or not hasattr(inner, "__len__") else inner


def _repeated(dataset: Any) -> float:
    """Share of the rows that a `Subset`, or one of another, picks more than once."""
    chain = []
    while isinstance(dataset, Subset):
        chain.append(dataset.indices)
        dataset = dataset.dataset
    if not chain:
        return 0.0
    rows = chain.pop()
    while chain:
        rows = [rows[int(i)] for i in chain.pop()]
    counts = Counter(map(int, rows))
    return sum(n for n in counts.values() if n > 1) / max(1, counts.total())


def _leak(data: _Data, twins: float, trained: list[_Data]) -> LoopLeak:
    whole = len(data.looked_at) >= WHOLE * max(len(d.trained) for d in trained)
    return LoopLeak(len(data.looked_at), len(data.shared), twins, whole, data.site)


def _rows(batch: Any) -> Iterator[int]:
    """A number for each row, over all tensors of a batch; equal rows have equal numbers."""
    tensors = [t for t in tensors_in(batch) if t.dim() and is_plain(t) and t.device.type == "cpu"]
    count = len(tensors[0]) if tensors else 0
    tensors = [t.detach() for t in tensors if len(t) == count]
    if not count or sum(t[0].numel() for t in tensors) < FEWEST_NUMBERS:
        return
    with torch._C.DisableTorchFunction():
        parts = [_bytes(t.reshape(count, -1)) for t in tensors]
    for row in range(count):
        yield hash(tuple(part[row].tobytes() for part in parts))


def _bytes(rows: torch.Tensor) -> Any:
    few = rows[:, :: max(1, rows.shape[1] // ENTRIES)].contiguous()
    return few.view(torch.uint8).numpy() if few.dtype is not torch.bool else few.numpy()
