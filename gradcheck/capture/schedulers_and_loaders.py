"""What else a loop does: evaluation, passes over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader, default_collate

from gradcheck.capture.structures import tensors_in
from gradcheck.capture.tape import outside
from gradcheck.workload.source_sites import location_of_frame

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


class SchedulersAndLoaders:
    """Each method stands around one of torch's: a module's `eval`, a loader's `__iter__`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def evaluating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(module: nn.Module) -> Any:
            if not self.recorder.busy:
                self.recorder.eval_sites[id(module)] = location_of_frame(outside())
            return original(module)

        return evaluate

    def iterating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def iterate(loader: DataLoader[Any]) -> Any:
            count = self.recorder.loaders.get(id(loader), (loader, 0))[1]
            self.recorder.loaders[id(loader)] = loader, count + 1
            return original(loader)

        return iterate

    def fetching(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Around `__next__` of what iterates over a loader: torch stacks single samples on the first axis."""

        def fetch(iterator: Any) -> Any:
            batch = original(iterator)
            if self.recorder.tape.recording and iterator._auto_collation and iterator._collate_fn is default_collate:
                rows = len(iterator._dataset) if hasattr(iterator._dataset, "__len__") else 0
                for tensor in tensors_in(batch):
                    if tensor.dim():
                        self.recorder.tape.rows.note(tensor, rows, chosen=True)
            return batch

        return fetch
