"""Where any training loop can be seen: global hooks and thin wrappers around backward, step, clipping and GradScaler."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradcheck.capture.patches import Patches

Kind = Literal["norm", "value"]


class Listener(Protocol):
    """What is called. Nothing that it does may change a value, draw a random number, or wait for a device between measured steps."""

    def before_backward(self, losses: Sequence[torch.Tensor]) -> None: ...

    def after_backward(self) -> None: ...

    def before_step(self, optimizer: Optimizer, closure: bool) -> None: ...

    def after_step(self, optimizer: Optimizer) -> None: ...

    def before_clipping(self, kind: Kind, threshold: float, parameters: Sequence[torch.Tensor]) -> None: ...

    def scaled(self, scaler: Any, loss: torch.Tensor) -> None:
        """`loss` is what was multiplied by the scaler's factor."""

    def unscaled(self, optimizer: Optimizer) -> None: ...

    def scaler_steps(self, scaler: Any) -> None:
        """`scaler.step` begins."""

    def scaler_updated(self) -> None: ...

    def evaluated(self, module: nn.Module) -> None:
        """`module.eval()` is called."""

    def failed(self) -> None:
        """Something of the above raised: nothing is told any more."""

    def scaler_stepped(self, optimizer: Optimizer) -> None:
        """`scaler.step` is over; whether the optimizer took a step is another matter."""


class LoopHooks:
    """Installed by `install`, taken out by `remove`, which may be called at any time and twice."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._patches = Patches()
        self._handles: list[Any] = []
        self._inside = 0  # a backward pass may run another one, an optimizer's step that of another optimizer
        self._stepping: list[Optimizer] = []
        self.failure: Exception | None = None  # of gradcheck's own code: it is silent from then on

    def install(self) -> None:
        from torch.nn.utils import clip_grad

        self._handles = [register_optimizer_step_pre_hook(self._before_step), register_optimizer_step_post_hook(self._after_step)]
        self._patches.wrap(torch.autograd, "backward", self._backward)
        kinds: tuple[Kind, ...] = ("norm", "value")
        clips = {kind: getattr(clip_grad, f"clip_grad_{kind}_") for kind in kinds}
        for kind, original in clips.items():
            self._patches.wrap(clip_grad, f"clip_grad_{kind}_", functools.partial(self._clipping, kind))
            self._patches.put_for(original, getattr(clip_grad, f"clip_grad_{kind}_"))
        scaler = torch.amp.grad_scaler.GradScaler
        methods = (("scale", self._scaling), ("unscale_", self._unscaling), ("step", self._scaler_step), ("update", self._updating))
        for name, make in methods:
            self._patches.wrap(scaler, name, make)
        self._patches.wrap(nn.Module, "eval", self._evaluating)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._patches.undo()

    def _tell(self, method: Callable[..., None], *args: Any) -> None:
        """The user's loop is not to fail for being watched. What ends it on purpose is no Exception."""
        if self.failure is not None:
            return
        try:
            method(*args)
        except Exception as error:
            self.failure = error
            with suppress(Exception):
                self.listener.failed()

    @contextmanager
    def _own(self) -> Iterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(tensors, *args, **kwargs)
            losses = [tensors] if isinstance(tensors, torch.Tensor) else [t for t in tensors if isinstance(t, torch.Tensor)]
            with self._own():
                self._tell(self.listener.before_backward, losses)
                result = original(tensors, *args, **kwargs)
                self._tell(self.listener.after_backward)
            return result

        return backward

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if inner_optimizer(optimizer) is not optimizer:  # a wrapper whose inner optimizer steps
            return
        if not self._stepping:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            self._tell(self.listener.before_step, optimizer, callable(closure))
        self._stepping.append(optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not any(o is optimizer for o in self._stepping):
            return
        while self._stepping.pop() is not optimizer:  # steps inside it that raised
            pass
        if not self._stepping:
            self._tell(self.listener.after_step, optimizer)

    def _clipping(self, kind: Kind, original: Callable[..., Any]) -> Callable[..., Any]:
        argument = "max_norm" if kind == "norm" else "clip_value"

        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            given = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            self._tell(self.listener.before_clipping, kind, args[0] if args else kwargs.get(argument, math.inf), given)
            return original(given, *args, **kwargs)

        return clip

    def _scaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            if scaler.is_enabled() and isinstance(outputs, torch.Tensor):
                self._tell(self.listener.scaled, scaler, outputs)
            return original(scaler, outputs)

        return scale

    def _unscaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale(scaler: Any, optimizer: Optimizer) -> Any:
            result = original(scaler, optimizer)
            if scaler.is_enabled():
                self._tell(self.listener.unscaled, inner_optimizer(optimizer))
            return result

        return unscale

    def _scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def step(scaler: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if scaler.is_enabled():
                self._tell(self.listener.scaler_steps, scaler)
            result = original(scaler, optimizer, *args, **kwargs)
            self._tell(self.listener.scaler_stepped, inner_optimizer(optimizer))
            return result

        return step

    def _updating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def update(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(scaler, *args, **kwargs)
            if scaler.is_enabled():
                self._tell(self.listener.scaler_updated)
            return result

        return update

    def _evaluating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(module: nn.Module) -> Any:
            self._tell(self.listener.evaluated, module)
            return original(module)

        return evaluate


def inner_optimizer(optimizer: Any) -> Any:
    """What a wrapper such as Accelerate's steps."""
    while type(optimizer).__module__.startswith("accelerate."):
        optimizer = optimizer.optimizer
    return optimizer
