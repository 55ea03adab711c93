"""Where a recorder stands in torch: global hooks, and wrappers around functions and methods. In for the time of one loop."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gradcheck.capture.backward import Backward
from gradcheck.capture.clips import Clips
from gradcheck.capture.forward import Forward
from gradcheck.capture.functional import Functional
from gradcheck.capture.patches import Patches
from gradcheck.capture.scalers import Scalers
from gradcheck.capture.schedulers import Schedulers
from gradcheck.capture.schedulers_and_loaders import SchedulersAndLoaders
from gradcheck.capture.steps import Steps

_hooks_with_kwargs: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {})
_hooks_always_called: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_always_called", {})


@dataclass
class Installation:
    """`remove` may be called at any time, and twice."""

    forward: Forward
    backward: Backward
    steps: Steps
    surroundings: SchedulersAndLoaders
    functional: Functional
    clips: Clips
    scalers: Scalers
    schedulers: Schedulers
    _patches: Patches = field(default_factory=Patches)
    _handles: list[Any] = field(default_factory=list)

    def install(self) -> None:
        from torch.nn.utils import clip_grad
        from torch.optim import lr_scheduler

        self._handles = [
            register_module_forward_pre_hook(self.forward.before),
            register_module_forward_hook(self.forward.after, with_kwargs=True, always_call=True),
            register_optimizer_step_pre_hook(self.steps.before),
            register_optimizer_step_post_hook(self.steps.after),
        ]
        wrap = self._patches.wrap
        wrap(torch.autograd, "backward", self.backward.wrapper)
        wrap(torch.autograd, "grad", self.backward.asking)
        for name, make in self.functional.wrappers():
            wrap(torch.func, name, make)
        for kind in ("norm", "value"):
            name = f"clip_grad_{kind}_"
            wrap(clip_grad, name, functools.partial(self.clips.wrapper, kind))
            self._patches.put(torch.nn.utils, name, getattr(clip_grad, name))
        scaler = torch.amp.grad_scaler.GradScaler
        for name, make in self.scalers.wrappers():
            wrap(scaler, name, make)
        applied = vars(torch.autograd.Function)["apply"].__func__
        self._patches.put(torch.autograd.Function, "apply", classmethod(self.forward.applying(applied)))
        wrap(torch.Tensor, "as_subclass", self.forward.retyping)
        wrap(Optimizer, "__init__", self.steps.made)
        wrap(Optimizer, "zero_grad", self.steps.clearing)
        wrap(nn.Module, "eval", self.surroundings.evaluating)
        wrap(DataLoader, "__iter__", self.surroundings.iterating)
        wrap(_BaseDataLoaderIter, "__next__", self.surroundings.fetching)
        kinds = [c for c in vars(lr_scheduler).values() if inspect.isclass(c) and "step" in vars(c)]
        for kind_of in kinds:
            wrap(kind_of, "step", self.schedulers.stepping)
        wrap(lr_scheduler.LRScheduler, "__init__", self.schedulers.making)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
            _hooks_with_kwargs.pop(handle.id, None)
            _hooks_always_called.pop(handle.id, None)
        self._handles.clear()
        self._patches.undo()
