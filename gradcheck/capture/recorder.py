"""The recorder: global hooks and thin wrappers that see what a training loop does, without changing it.

Nothing here knows where the loop came from: a script that gradcheck runs, or a program that asks to be watched.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from gradcheck.capture.clips import Clips
from gradcheck.capture.events import Clip, Pass, Scaler, Step, Watched
from gradcheck.capture.modes import Modes
from gradcheck.capture.owners import Owners, is_wrapper, variable_of
from gradcheck.capture.passes import fingerprint, leaves
from gradcheck.capture.patches import Patches
from gradcheck.capture.scalers import Scalers
from gradcheck.capture.tape import Node, Tape, outside
from gradcheck.measure.fork import copy_optimizer
from gradcheck.nouns.places import Location
from gradcheck.target.sites import Sites, location_of_frame, origin_of

_hooks_with_kwargs: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {})
_hooks_always_called: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_always_called", {})


class Recorder(TorchFunctionMode):
    """Use as a context around the loop. `taped`: steps of each optimizer whose computations are kept, to be replayed.

    `observer` is called after each backward pass and each step; what it raises goes through the loop.
    """

    def __init__(self, sites: Sites, taped: int, observer: Callable[[Recorder], None] = lambda _: None) -> None:
        super().__init__()
        self.sites, self.taped, self.observer = sites, taped, observer
        self.tape = Tape()
        self.owners = Owners(sites, self.tape)
        self.tape.unowned = self._find_owner
        self.optimizers: dict[int, Watched] = {}
        self._clips, self._scalers, self._modes = Clips(self), Scalers(self), Modes()
        self.loaders: dict[int, tuple[DataLoader[Any], int]] = {}  # a loader, and how often it was iterated over
        self.backwards = 0
        self.unclaimed: list[Pass] = []  # that reach no known optimizer
        self.connected = False  # some pass reached a parameter of an optimizer
        self.schedules = 0
        self.schedule_site: Location | None = None
        self.backward_site: Location | None = None
        self.eval_sites: dict[int, Location | None] = {}
        self._stack: list[tuple[nn.Module, Node | None, bool]] = []
        self._depth = 0
        self.busy = 0  # inside a backward pass, a step, or gradcheck's own code
        self._stepping: list[int] = []  # ids of optimizers inside their step
        self._patches = Patches()
        self._handles: list[Any] = []

    @property
    def clips(self) -> dict[tuple[str, Location | None], Clip]:
        return self._clips.seen

    @property
    def scalers(self) -> dict[int, tuple[Any, Scaler]]:
        return self._scalers.seen

    # ----------------------------------------------------------------- context

    def __enter__(self) -> Recorder:
        try:
            self._install()
            super().__enter__()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *details: Any) -> None:
        self._remove()
        super().__exit__(*details)

    def _install(self) -> None:
        from torch.nn.utils import clip_grad
        from torch.optim import lr_scheduler

        self._handles = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        wrap = self._patches.wrap
        wrap(torch.autograd, "backward", self._backward)
        for kind in ("norm", "value"):
            name = f"clip_grad_{kind}_"
            wrap(clip_grad, name, functools.partial(self._clips.wrapper, kind))
            self._patches.put(torch.nn.utils, name, getattr(clip_grad, name))
        scaler = torch.amp.grad_scaler.GradScaler
        for name, make in self._scalers.wrappers():
            wrap(scaler, name, make)
        applied = vars(torch.autograd.Function)["apply"].__func__
        self._patches.put(torch.autograd.Function, "apply", classmethod(self._applying(applied)))
        wrap(Optimizer, "__init__", self._optimizer_made)
        wrap(Optimizer, "zero_grad", self._clearing)
        wrap(nn.Module, "eval", self._evaluating)
        wrap(DataLoader, "__iter__", self._iterating)
        kinds = [c for c in vars(lr_scheduler).values() if inspect.isclass(c) and "step" in vars(c)]
        for kind_of in kinds:
            wrap(kind_of, "step", self._scheduling)

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
            _hooks_with_kwargs.pop(handle.id, None)
            _hooks_always_called.pop(handle.id, None)
        self._handles.clear()
        self._patches.undo()
        self.tape.recording = False

    # ----------------------------------------------------------------- forward

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.busy or self._depth or not self.tape.recording:
            return function(*args, **kwargs)
        return self.tape.function(function, args, kwargs)

    def _applying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Custom functions, which torch does not show to modes, are recorded as one call."""

        def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
            function = functools.partial(original, kind)
            if self.busy or self._depth or not self.tape.recording:
                return function(*args, **kwargs)
            self.busy += 1
            try:
                return self.tape.function(function, args, kwargs)
            finally:
                self.busy -= 1

        return apply

    def _before(self, module: nn.Module, args: Any) -> None:
        if is_wrapper(module):
            return
        top = not self._depth and not self.busy and _holds_anything(module)
        counts = bool(self._depth) or (not self.busy and top)
        node = None
        if top:
            self.busy += 1
            try:
                node = self._called(module, args)
            except Exception as error:  # the user's module is not to fail for being watched
                self.tape.failure = self.tape.failure or f"{type(error).__name__}: {error}"
                self.tape.recording = False
            finally:
                self.busy -= 1
        self._stack.append((module, node, counts))
        self._depth += counts

    def _called(self, module: nn.Module, args: Any) -> Node | None:
        """A module is called from outside all others."""
        trained = any(p.requires_grad for p in module.parameters())
        if torch.is_grad_enabled() and trained:
            self._modes.look(module)
        if not self.tape.recording:
            return None
        if not (trained and (torch.is_grad_enabled() or not self.connected)) and not self.tape.is_live(args):
            return None
        owner, path = self.owners.of(module)
        random = torch.get_rng_state() if self.owners.initial else None
        return self.tape.module(owner, path, self.tape.encode(args), {}, location_of_frame(outside()), random)

    def _after(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """`rest`: keyword arguments and output; after an exception torch leaves the former out."""
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        if is_wrapper(module):
            return
        while self._stack:
            called, node, counts = self._stack.pop()
            self._depth -= counts
            if called is module:
                break
        else:
            return
        if node is not None and self.tape.recording:
            self.busy += 1
            try:
                node.kwargs = self.tape.encode(dict(kwargs))
                error = sys.exc_info()[1]
                if output is None and error is not None:
                    self.tape.failed = node, error
                self.tape.put_out(node, output)
            finally:
                self.busy -= 1

    # ---------------------------------------------------------------- backward

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            if self.busy:
                return original(tensors, grad_tensors, *args, **kwargs)
            losses = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
            self.busy += 1
            try:
                passes = [self._pass(t, grad_tensors is not None) for t in losses if isinstance(t, torch.Tensor)]
                for watched in self.optimizers.values():
                    watched.settle()
                result = original(tensors, grad_tensors, *args, **kwargs)
                self._claim(passes)
            finally:
                self.busy -= 1
            self.observer(self)
            return result

        return backward

    def _pass(self, loss: torch.Tensor, given: bool) -> Pass:
        self.backwards += 1
        place = location_of_frame(outside())
        self.backward_site = self.backward_site or place
        factor = getattr(loss, "_gradcheck_factor", 1.0)
        ref = self.tape.ref(loss) if self.tape.recording else None
        given = given and loss.dim() > 0
        return Pass(loss.detach() / factor, ref, place, leaves(loss), factor, given, self.tape.unknown, len(self.tape.cuts))

    def _claim(self, passes: list[Pass]) -> None:
        for found in passes:
            wanted = [w for w in self.optimizers.values() if w.ids & found.reached]
            for watched in wanted:
                watched.label = watched.label or variable_of(watched.optimizer)
                watched.live = [*watched.live[-255:], found]
                watched.keep_watch()
                watched.note_version()
            self.connected = self.connected or bool(wanted)
            if not wanted:
                self.unclaimed = [*self.unclaimed[-63:], found]

    # ------------------------------------------------------------------- steps

    def watched(self, optimizer: Optimizer) -> Watched:
        if id(optimizer) not in self.optimizers:
            self._register(optimizer)
        return self.optimizers[id(optimizer)]

    def _register(self, optimizer: Optimizer) -> None:
        found = Watched(optimizer, "", self.sites.get(optimizer))
        self.optimizers[id(optimizer)] = found
        self._adopt(found)

    def _adopt(self, found: Watched) -> None:
        """Parameters that no module holds get an owner."""
        held = {id(p) for m in self.sites.modules() for p in m._parameters.values() if p is not None}
        known = self.tape.weights
        self.owners.adopt(p for p in found.parameters if id(p) not in held and id(p) not in known)

    def _find_owner(self, tensor: torch.Tensor) -> None:
        """A parameter is used by itself before the module that holds it has run."""
        if isinstance(tensor, nn.Parameter) or any(id(tensor) in w.ids for w in self.optimizers.values()):
            self.busy += 1
            try:
                self.owners.own([tensor])
            finally:
                self.busy -= 1

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if type(optimizer).__module__.startswith("accelerate") or self.busy:
            return None
        self.busy += 1
        self._stepping.append(id(optimizer))
        watched = self.watched(optimizer)
        if watched.copy is None and not watched.steps:
            self._copy(watched)
        watched.step_site = watched.step_site or location_of_frame(outside())
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            watched.settle()
            self._note(watched)
            return None
        return _with_closure(args, kwargs, self._watching(closure))

    def _watching(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        def watched_closure(*args: Any, **kwargs: Any) -> Any:
            busy, self.busy = self.busy, 0
            try:
                return closure(*args, **kwargs)
            finally:
                self.busy = busy

        return watched_closure

    def _copy(self, watched: Watched) -> None:
        watched.label = watched.label or variable_of(watched.optimizer)
        watched.base_rate = float(watched.optimizer.param_groups[0].get("initial_lr", _rate(watched.optimizer)))
        self.owners.own(watched.parameters)
        for owner in self.owners.current.values():
            watched.memo |= owner.memo
        try:
            watched.copy = copy_optimizer(watched.optimizer, watched.memo)
        except Exception as error:
            self.tape.failure = self.tape.failure or f"the optimizer cannot be copied: {type(error).__name__}: {error}"

    def _note(self, watched: Watched) -> None:
        """Files the step that is about to be taken, or, with a closure, that was taken."""
        ids, passes = watched.ids, watched.live
        lost = not passes and bool(watched.cleared)
        if lost:
            passes = watched.cleared
        elif not passes and self.unclaimed:
            passes, self.unclaimed = self.unclaimed, []  # of a loss that does not reach this optimizer, and no other one
        mine = self._modes.take(ids)
        factor = next((p.factor for p in passes if p.factor != 1), 1.0)
        rates = tuple(float(g.get("lr") or 0.0) for g in watched.optimizer.param_groups)
        scaler = next((s for o, s in self.scalers.values() if getattr(o, "_gradcheck_stepping", False)), None)
        same = {p.place for p in passes}
        watched.steps.append(
            Step(
                passes=passes,
                rate=max(rates, default=0.0),
                rates=rates,
                leftover=watched.dirty and bool(watched.steps),
                lost=lost,
                dropped=not lost and any(p.place in same for p in watched.cleared),
                bare=factor != 1 and not watched.unscaled and scaler is None,
                by_scaler=scaler is not None,
                off=tuple(name for m in mine for name in m.dropouts),
                frozen=tuple(name for m in mine for name in m.norms),
                fresh=any(m.fresh for m in mine),
                evaluated=bool(mine) and all(not m.module.training for m in mine),
                fingerprint=fingerprint(passes),
                epoch=sum(count for _, count in self.loaders.values()),
                edited=watched.edited(),
            )
        )
        watched.live, watched.cleared, watched.unscaled = [], [], False

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._stepping or self._stepping[-1] != id(optimizer):
            return  # one inside another one's step
        self._stepping.pop()
        watched = self.optimizers[id(optimizer)]
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if callable(closure):
            evaluated = [*watched.cleared, *watched.live]
            watched.live, watched.cleared = evaluated[:1], []
            self._note(watched)
        self.busy -= 1
        watched.dirty = True
        watched.keep_watch()
        stepped = [w for w in self.optimizers.values() if w.steps]
        if len(stepped) == len(self.optimizers) or any(len(w.steps) > 1 for w in stepped):
            self.owners.initial = False
        self._release(watched)
        self.observer(self)

    def _release(self, watched: Watched) -> None:
        """Keeps the computations of the first steps only."""
        if len(watched.steps) > self.taped:
            for found in watched.steps[-1].passes:
                found.ref = None
        if all(len(w.steps) >= self.taped for w in self.optimizers.values() if w.steps):
            self.tape.recording = False

    def _optimizer_made(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def made(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            if not self.busy and not type(optimizer).__module__.startswith("accelerate"):
                self.watched(optimizer)

        return made

    def _clearing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def zero_grad(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            watched = self.optimizers.get(id(optimizer))
            if watched is not None and watched.clear_site is None:
                watched.clear_site = location_of_frame(outside())
            return original(optimizer, *args, **kwargs)

        return zero_grad

    # ------------------------------------------------- schedule, evaluation, data

    def _scheduling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            frame = outside()
            if frame is not None and origin_of(frame.f_code.co_filename) not in ("torch", "hidden"):
                self.schedules += 1
                self.schedule_site = self.schedule_site or location_of_frame(frame)
            return original(scheduler, *args, **kwargs)

        return step

    def _evaluating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(module: nn.Module) -> Any:
            if not self.busy:
                self.eval_sites[id(module)] = location_of_frame(outside())
            return original(module)

        return evaluate

    def _iterating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def iterate(loader: DataLoader[Any]) -> Any:
            count = self.loaders.get(id(loader), (loader, 0))[1]
            self.loaders[id(loader)] = loader, count + 1
            return original(loader)

        return iterate


def _with_closure(args: Any, kwargs: Any, closure: Callable[..., Any]) -> tuple[Any, Any]:
    """Arguments of a step with another closure."""
    return ((args[0], closure, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closure})


def _holds_anything(module: nn.Module) -> bool:
    """Modules without parameters and buffers are looked through: losses, activations."""
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _rate(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0].get("lr") or 0.0) if optimizer.param_groups else 0.0
