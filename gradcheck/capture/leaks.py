"""Which samples a loop trains on, and which it only looks at: rows of the batches that its loaders give, by what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.capture.recording import Recording
from gradcheck.capture.structures import is_plain, tensors_in
from gradcheck.instrument.loop_events import LoopListener
from gradcheck.instrument.running_code import here
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopLeak

MOST_ROWS = 20_000  # of one dataset
ENTRIES = 512  # of each tensor of a row
WHOLE = 0.95  # of the training data: as many that are looked at are likely these themselves
FEWEST_NUMBERS = 4  # in a row: fewer tell no samples apart


@dataclass(eq=False)
class _Data:
    """A dataset, and what came out of it."""

    dataset: Any
    site: Location | None
    trained: set[int] = field(default_factory=set)
    looked_at: set[int] = field(default_factory=set)
    passes: dict[int, Counter[int]] = field(default_factory=dict)  # by iterator: the rows of one pass

    @property
    def twins(self) -> float:
        """Share of the rows of the first pass that have a twin in it."""
        counts = next(iter(self.passes.values()), Counter())
        return sum(n for n in counts.values() if n > 1) / max(1, counts.total())


class Leaks(LoopListener):
    """`fetched` is told of every batch that a loader gives."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._data: dict[int, _Data] = {}
        self._waiting: tuple[_Data, list[int], int] | None = None  # rows of the last batch, and the backward passes before it

    def data_begun(self, loader: Any) -> None:
        key = id(loader.dataset)
        if key not in self._data:
            self._data[key] = _Data(loader.dataset, here())

    def fetched(self, iterator: Any, batch: Any) -> None:
        self._settle()
        data = self._data.get(id(iterator._dataset))
        if data is None or len(data.trained) + len(data.looked_at) >= MOST_ROWS:
            return
        rows = list(_rows(batch))
        data.passes.setdefault(id(iterator), Counter()).update(rows)
        self._waiting = data, rows, self.recording.backwards

    def _settle(self) -> None:
        if self._waiting is not None:
            data, rows, before = self._waiting
            (data.trained if self.recording.backwards > before else data.looked_at).update(rows)
            self._waiting = None

    def found(self) -> LoopLeak | None:
        """The data that are only looked at, of which most were trained on. None where none are."""
        self._settle()
        trained = [d for d in self._data.values() if d.trained]
        rows = set[int]().union(*(d.trained for d in trained))
        others = [d for d in self._data.values() if d.looked_at and not d.trained]
        if not rows or not others:
            return None
        twins = max(d.twins for d in trained)
        told = [_leak(d, rows, twins, trained) for d in others]
        clean = [x for x in told if x.rows and x.shared / x.rows - x.twins <= 0]
        whole = [x for x in told if x.rows and x.shared == x.rows]
        left = [x for x in told if not (clean and x in whole)]  # beside data of its own, a look at what was trained on is meant
        return max(left or told, key=lambda x: x.shared / max(1, x.rows))


def _leak(data: _Data, rows: set[int], twins: float, trained: list[_Data]) -> LoopLeak:
    whole = len(data.looked_at) >= WHOLE * max(len(d.trained) for d in trained)
    return LoopLeak(len(data.looked_at), len(data.looked_at & rows), twins, whole, data.site)


def _rows(batch: Any) -> Iterator[int]:
    """A number for each row over all tensors of a batch, which equal rows share."""
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
