"""Where a tape listens besides the hooks of the loop: calls of modules and of functions of torch. Installed for one loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.data import default_collate
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gradcheck.capture.backward import Backward
from gradcheck.capture.forward import Forward
from gradcheck.capture.functional import Functional
from gradcheck.capture.leaks import Leaks
from gradcheck.capture.reads import Reads
from gradcheck.capture.recording import Recording
from gradcheck.capture.structures import tensors_in
from gradcheck.instrument.loop_hooks import LoopHooks
from gradcheck.instrument.patches import Patches

_hooks_with_kwargs: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {})
_hooks_always_called: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_always_called", {})


@dataclass
class Installation:
    """`remove` may be called at any time, and twice."""

    recording: Recording
    hooks: LoopHooks
    forward: Forward
    backward: Backward
    functional: Functional
    leaks: Leaks
    reads: Reads
    _patches: Patches = field(default_factory=Patches)
    _handles: list[Any] = field(default_factory=list)

    def install(self) -> None:
        self.hooks.install()
        self._handles = [
            register_module_forward_pre_hook(self.forward.before),
            register_module_forward_hook(self.forward.after, with_kwargs=True, always_call=True),
        ]
        wrap = self._patches.wrap
        wrap(torch.autograd, "grad", self.backward.asking)
        for name, make in self.functional.wrappers():
            wrap(torch.func, name, make)
        applied = vars(torch.autograd.Function)["apply"].__func__
        self._patches.put(torch.autograd.Function, "apply", classmethod(self.forward.applying(applied)))
        wrap(torch.Tensor, "as_subclass", self.forward.retyping)
        wrap(_BaseDataLoaderIter, "__next__", self._fetching)
        self.reads.install(self._patches)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
            _hooks_with_kwargs.pop(handle.id, None)
            _hooks_always_called.pop(handle.id, None)
        self._handles.clear()
        self._patches.undo()
        self.hooks.remove()

    def _fetching(self, original: Any) -> Any:
        """Wraps `__next__` of a loader's iterator: torch stacks single samples on the first axis."""

        def fetch(iterator: Any) -> Any:
            batch, tape = original(iterator), self.recording.tape
            self.leaks.fetched(iterator, batch)
            if tape.recording and iterator._auto_collation and iterator._collate_fn is default_collate:
                rows = len(iterator._dataset) if hasattr(iterator._dataset, "__len__") else 0
                for tensor in tensors_in(batch):
                    if tensor.dim():
                        tape.rows.note(tensor, rows, chosen=True)
            return batch

        return fetch
