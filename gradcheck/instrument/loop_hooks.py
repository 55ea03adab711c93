"""Where any training loop can be observed: global hooks and thin wrappers around what loops call. They report events to listeners."""

import functools
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from gradcheck.instrument.patches import Patches
from gradcheck.instrument.traced_optimizer import inner_optimizer
from gradcheck.workload.device import is_capturing

ClipKind = Literal["norm", "value"]


class LoopListener:
    """Is told what a loop does; each listener overrides the events that concern it. Nothing that it does may change a value, draw a random
    number, or, in a watched run, wait for a device between measured steps. Passes inside a pass, steps inside a step, and optimizers that
    only wrap another one are not reported.
    """

    def before_backward(self, losses: Sequence[torch.Tensor], given: bool) -> None:
        """`given`: with gradients of their own."""

    def after_backward(self, done: bool) -> None:
        """`done`: it did not raise."""

    def backward_failed(self) -> None:
        """The same where it raised, for those who do not hear of each."""

    def optimizer_made(self, optimizer: Optimizer) -> None:
        """Its constructor, or that of its base class, is over."""

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        """`closure`: the step is given one; its calls are reported."""

    def step_given(self, options: Mapping[str, Any]) -> None:
        """The numbers and words among the arguments of the step that is about to be taken."""

    def closure_begins(self) -> None: ...

    def closure_ended(self) -> None: ...

    def after_step(self, optimizer: Optimizer) -> None: ...

    def step_failed(self, optimizer: Optimizer) -> None:
        """Reported before the next step: the last one raised."""

    def clears(self, optimizer: Optimizer) -> None:
        """`zero_grad` is called."""

    def before_clipping(self, kind: ClipKind, threshold: float, parameters: Sequence[torch.Tensor]) -> None: ...

    def after_clipping(self, result: Any) -> None:
        """`result`: what the function returned; None when it raised."""

    def scaler_made(self, scaler: Any, asked: bool) -> None:
        """`asked`: to scale. It may have switched itself off because the device is missing."""

    def scales(self, scaler: Any) -> None: ...

    def scaled(self, scaler: Any, loss: torch.Tensor, result: torch.Tensor | None) -> None:
        """`result`: None when it raised, the loss itself where the scaler is off."""

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None: ...

    def scaler_steps(self, scaler: Any) -> None: ...

    def scaler_stepped(self, scaler: Any, optimizer: Optimizer) -> None:
        """`scaler.step` is over, whether or not the optimizer took a step."""

    def scaler_updated(self, scaler: Any) -> None: ...

    def scheduler_made(self, scheduler: Any) -> None: ...

    def schedule_moves(self, scheduler: Any, given: Any) -> None:
        """`step` is called, by the loop, by another scheduler, or by its own constructor. `given`: its first argument."""

    def state_loaded(self, module: nn.Module, state: Any, result: Any) -> None:
        """`load_state_dict` has copied a state into the module's tensors, and returns the result."""

    def evaluated(self, module: nn.Module) -> None:
        """`eval` is called."""

    def data_begun(self, loader: Any) -> None:
        """A DataLoader is iterated over."""

    def captured(self) -> None:
        """In place of any other event, while the device records a graph of operations (CUDA graphs): nothing may be read or asked of it."""

    def failed(self, error: Exception) -> None:
        """A listener raised: nothing more is reported."""


_Function = Callable[..., Any]
TIMED = 17  # of so many steps listeners are timed in one, for all of them: reading the clock is a large part of what they take
_CLIPS: dict[str, tuple[ClipKind, str]] = {"clip_grad_norm_": ("norm", "max_norm"), "clip_grad_value_": ("value", "clip_value")}


class LoopHooks:
    """Installed by `install`, taken out by `remove`, which may be called at any time and twice. Listeners hear of events in their order."""

    def __init__(self, *listeners: LoopListener) -> None:
        self.listeners = listeners
        events = [name for name in vars(LoopListener) if not name.startswith("_")]
        deaf = {name: getattr(LoopListener, name) for name in events}
        # By event, those who take it up: a loop may take thousands of steps a second.
        self._heard = {e: [getattr(x, e) for x in listeners if getattr(type(x), e) is not deaf[e]] for e in events}
        self._patches = Patches()
        self._handles: list[Any] = []
        self._inside = 0  # a backward pass may run another one
        self._stepping: list[Optimizer] = []  # a step may run that of another optimizer, or that of its base class
        self.failure: Exception | None = None  # of gradcheck's own code: nothing is reported from then on
        self.timed = False  # whether the clock is read
        self.seconds = 0.0  # that listeners took, since `listen`
        self._began = 0.0

    def install(self) -> None:
        """If it raises, no part of it is left behind."""
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _install(self) -> None:
        from torch.nn.utils import clip_grad

        self._handles += [register_optimizer_step_pre_hook(self._before_step), register_optimizer_step_post_hook(self._after_step)]
        wrap = self._patches.wrap
        wrap(torch.autograd, "backward", self._backward)
        self._patches.wrap_everywhere(clip_grad, {name: functools.partial(self._clipping, *kind) for name, kind in _CLIPS.items()})
        scaler = torch.amp.grad_scaler.GradScaler
        wrap(scaler, "__init__", self._making_scaler)
        wrap(scaler, "scale", self._scaling)
        wrap(scaler, "step", self._scaler_step)
        wrap(scaler, "unscale_", self._unscaling)
        wrap(scaler, "update", self._telling_of("scaler_updated"))
        wrap(Optimizer, "__init__", self._telling_of("optimizer_made"))
        wrap(Optimizer, "zero_grad", self._telling_of("clears", before=True))
        wrap(nn.Module, "load_state_dict", self._loading)
        wrap(nn.Module, "eval", self._telling_of("evaluated", before=True))
        wrap(DataLoader, "__iter__", self._telling_of("data_begun", before=True))
        for kind in (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau):  # the constructor of the latter calls no other
            wrap(kind, "__init__", self._telling_of("scheduler_made"))
        for stepped in [c for c in vars(lr_scheduler).values() if inspect.isclass(c) and "step" in vars(c)]:
            wrap(stepped, "step", self._scheduling)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._patches.undo()

    def hear(self, event: str, listener: LoopListener, wanted: bool) -> None:
        """Whether a listener is told of this event from now on: an event without listeners costs next to nothing."""
        heard, own = self._heard[event], getattr(listener, event)
        if (own in heard) != wanted:
            (heard.append if wanted else heard.remove)(own)

    def _tell(self, event: str, *args: Any) -> None:
        """The user's loop must not fail because it is watched. What ends it on purpose is not an Exception."""
        heard = self._heard[event]
        if not heard or self.failure is not None:
            return
        if is_capturing():
            heard, args = self._heard["captured"], ()
        timed = self.timed
        if timed:
            self._began = time.perf_counter()
        try:
            for hear in heard:
                hear(*args)
        except Exception as error:
            self.failure = error
            for listener in self.listeners:
                listener.failed(error)
        if timed:
            self.seconds += time.perf_counter() - self._began

    def listen(self, timed: bool) -> None:
        """Whether to time listeners from now on, from zero."""
        self.timed, self.seconds, self._began = timed, 0.0, time.perf_counter()

    def sampled(self, step: int, now: float) -> float:
        """Seconds that listeners have taken in TIMED steps, at the end of the one of them that was timed; 0 at that of the others."""
        taken = TIMED * (self.seconds + now - self._began) if self.timed else 0.0
        if self.timed or not step % TIMED:
            self.listen(not self.timed)
        return taken

    def _telling_of(self, event: str, *, before: bool = False) -> Callable[[_Function], _Function]:
        """A wrapper around a method that reports its object."""

        def make(original: _Function) -> _Function:
            heard = self._heard[event]

            def tell_first(owner: Any, *args: Any, **kwargs: Any) -> Any:
                if heard:
                    self._tell(event, owner)
                return original(owner, *args, **kwargs)

            def tell_then(owner: Any, *args: Any, **kwargs: Any) -> Any:
                result = original(owner, *args, **kwargs)
                self._tell(event, owner)
                return result

            return tell_first if before else tell_then

        return make

    def _loading(self, original: _Function) -> _Function:
        def load_state_dict(module: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(module, *args, **kwargs)
            if len(args) < 3 and not kwargs.get("assign"):  # otherwise the module's tensors are those of the state by now
                self._tell("state_loaded", module, args[0] if args else kwargs.get("state_dict"), result)
            return result

        return load_state_dict

    def _scheduling(self, original: _Function) -> _Function:
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            self._tell("schedule_moves", scheduler, next(iter((*args, *kwargs.values())), None))
            return original(scheduler, *args, **kwargs)

        return step

    # ---------------------------------------------------------------- backward

    def _backward(self, original: _Function) -> _Function:
        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(tensors, grad_tensors, *args, **kwargs)
            if isinstance(tensors, torch.Tensor):
                losses = [tensors]
            else:
                tensors = tuple(tensors) if isinstance(tensors, Iterator) else tensors
                losses = [t for t in tensors if isinstance(t, torch.Tensor)]
            self._inside += 1
            try:
                self._tell("before_backward", losses, grad_tensors is not None)
                done = False
                try:
                    result = original(tensors, grad_tensors, *args, **kwargs)
                    done = True
                finally:
                    self._tell("after_backward", done)
                    if not done:
                        self._tell("backward_failed")
            finally:
                self._inside -= 1
            return result

        return backward

    # ------------------------------------------------------------------- steps

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if inner_optimizer(optimizer) is not optimizer:  # a wrapper whose inner optimizer steps
            return None
        while self._stepping and not _runs(self._stepping[0]):
            self._tell("step_failed", self._stepping[0])
            self._stepping.clear()
        first, closure = not self._stepping, args[1] if len(args) > 1 else kwargs.get("closure")
        self._stepping.append(optimizer)
        if not first:
            return None
        self._tell("before_step", optimizer, callable(closure))
        if self._heard["step_given"]:
            self._tell("step_given", _options(optimizer, args[1:], kwargs) if len(args) > 1 or kwargs else {})
        return _with_closure(args, kwargs, self._evaluating(closure)) if callable(closure) else None

    def _evaluating(self, closure: _Function) -> _Function:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            self._tell("closure_begins")
            try:
                return closure(*args, **kwargs)
            finally:
                self._tell("closure_ended")

        return evaluate

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if len(self._stepping) == 1 and self._stepping[0] is optimizer:
            self._stepping.clear()
            self._tell("after_step", optimizer)
            return
        if not any(o is optimizer for o in self._stepping):
            return
        while self._stepping.pop() is not optimizer:  # steps inside it that raised
            pass
        if not self._stepping:
            self._tell("after_step", optimizer)

    # ------------------------------------------------------ clipping and scaling

    def _clipping(self, kind: ClipKind, argument: str, original: _Function) -> _Function:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            given = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            if self._heard["before_clipping"]:
                self._tell("before_clipping", kind, float(args[0] if args else kwargs.get(argument, math.inf)), given)
            result = None
            try:
                result = original(given, *args, **kwargs)
            finally:
                self._tell("after_clipping", result)
            return result

        return clip

    def _making_scaler(self, original: _Function) -> _Function:
        signature = inspect.signature(original)

        def made(scaler: Any, *args: Any, **kwargs: Any) -> None:
            original(scaler, *args, **kwargs)
            self._tell("scaler_made", scaler, bool(signature.bind(scaler, *args, **kwargs).arguments.get("enabled", True)))

        return made

    def _scaling(self, original: _Function) -> _Function:
        def scale(scaler: Any, outputs: Any) -> Any:
            if not isinstance(outputs, torch.Tensor):
                return original(scaler, outputs)
            self._tell("scales", scaler)
            result = None
            try:
                result = original(scaler, outputs)
            finally:
                self._tell("scaled", scaler, outputs, result)
            return result

        return scale

    def _unscaling(self, original: _Function) -> _Function:
        def unscale(scaler: Any, optimizer: Optimizer) -> Any:
            result = original(scaler, optimizer)
            self._tell("unscaled", scaler, inner_optimizer(optimizer))
            return result

        return unscale

    def _scaler_step(self, original: _Function) -> _Function:
        def step(scaler: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._tell("scaler_steps", scaler)
            try:
                return original(scaler, optimizer, *args, **kwargs)
            finally:
                self._tell("scaler_stepped", scaler, inner_optimizer(optimizer))

        return step


def _options(optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a step that say how it is to be taken: `burn_in=True`."""
    names = list(inspect.signature(type(optimizer).step).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return {k: v for k, v in given.items() if isinstance(v, bool | int | float | str)}


def _with_closure(args: Any, kwargs: Any, closure: _Function) -> tuple[Any, Any]:
    """Arguments of a step with another closure."""
    return ((args[0], closure, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closure})


def _runs(optimizer: Optimizer) -> bool:
    """Whether a step of it is running: one that raised was not reported."""
    frame = sys._getframe(3)  # above the step that is about to run
    while frame is not None:  # torch's wrapper around every step has it as its first argument
        if frame.f_code.co_name == "wrapper" and (frame.f_locals.get("args") or (None,))[0] is optimizer:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
