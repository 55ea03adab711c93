"""A script that runs on the batch of a spike, which was kept before, from the state of the model at the time."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gradcheck.errors import TargetError
from gradcheck.instrument.patches import Patches
from gradcheck.workload.kept_batch import like, load, restore_random


class KeptStep:
    """Raises TargetError for a file that holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved = load(path)
        self.state: dict[str, torch.Tensor] = self.saved["model"]
        self.batches = 0
        self.placed = False
        self._handle: Any = None

    def install(self, patches: Patches) -> None:
        patches.wrap(_BaseDataLoaderIter, "__next__", self._giving)
        self._handle = register_module_forward_pre_hook(self._called)

    def _giving(self, original: Any) -> Any:
        def give(iterator: Any) -> Any:
            batch = original(iterator)
            try:
                batch = like(batch, self.saved["batch"])
            except ValueError:  # another loader's
                return batch
            self.batches += 1
            return batch

        return give

    @torch.no_grad()
    def _called(self, module: nn.Module, args: Any) -> None:
        """Calls come from the outside in: the first that fits is the whole model."""
        own = module.state_dict() if not self.placed and self.batches else {}
        if not own or own.keys() != self.state.keys() or any(own[k].shape != self.state[k].shape for k in own):
            return
        for name, value in own.items():
            value.copy_(self.state[name])
        restore_random(self.saved["random"])
        self.placed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def check(self, error: BaseException | None) -> None:
        """Call it when the script is over. Raises TargetError if it did not run on what is kept; the error that ended it comes first."""
        self._let_go()
        if error is not None and not (self.batches and self.placed) and isinstance(error, Exception):
            return
        if not self.batches:
            hint = "name the script and the arguments that the file was kept with"
            raise TargetError(f"no DataLoader of the script gives batches like that of {self.path}", hint=hint)
        if not self.placed:
            hint = "build the model with the arguments that the file was kept with"
            raise TargetError(f"no model of the script has the parameters that {self.path} holds", hint=hint)
