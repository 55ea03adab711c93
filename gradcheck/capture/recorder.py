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

from gradcheck.capture.events import Clip, Pass, Scaler, Step, Watched
from gradcheck.capture.owners import Owners, is_wrapper, variable_of
from gradcheck.capture.patches import Patches
from gradcheck.capture.replay import calls_behind
from gradcheck.capture.tape import Node, Tape, outside
from gradcheck.measure.fork import copy_optimizer
from gradcheck.nouns.places import Location
from gradcheck.target.sites import Sites, location_of_frame, origin_of

MOST_LEAVES = 200_000  # autograd nodes that are walked over for the leaves of one loss
FINGERPRINT = 4096  # numbers at each end of a tensor that its fingerprint looks at

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
        self.clips: dict[tuple[str, Location | None], Clip] = {}
        self.scalers: dict[int, tuple[Any, Scaler]] = {}
        self.loaders: dict[int, tuple[DataLoader[Any], int]] = {}  # a loader, and how often it was iterated over
        self.backwards = 0
        self.unclaimed: list[Pass] = []  # that reach no known optimizer
        self.connected = False  # some pass reached a parameter of an optimizer
        self.schedules = 0
        self.schedule_site: Location | None = None
        self.backward_site: Location | None = None
        self.eval_sites: dict[int, Location | None] = {}
        self._off: dict[int, tuple[nn.Module, frozenset[int], tuple[str, ...], tuple[str, ...], bool]] = {}
        self._modes: dict[int, tuple[list[Any], list[Any]]] = {}
        self._stack: list[tuple[nn.Module, Node | None, bool]] = []
        self._depth = 0
        self._busy = 0  # inside a backward pass, a step, or gradcheck's own code
        self._stepping: list[int] = []  # ids of optimizers inside their step
        self._patches = Patches()
        self._handles: list[Any] = []

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
            wrap(clip_grad, name, functools.partial(self._clipping, kind))
            self._patches.put(torch.nn.utils, name, getattr(clip_grad, name))
        scaler = torch.amp.grad_scaler.GradScaler
        for name, make in (
            ("__init__", self._scaler_made),
            ("scale", self._scaling),
            ("unscale_", self._unscaling),
            ("step", self._scaler_step),
            ("update", self._scaler_update),
        ):
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
        if self._busy or self._depth or not self.tape.recording:
            return function(*args, **kwargs)
        return self.tape.function(function, args, kwargs)

    def _applying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Custom functions, which torch does not show to modes, are recorded as one call."""

        def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
            function = functools.partial(original, kind)
            if self._busy or self._depth or not self.tape.recording:
                return function(*args, **kwargs)
            self._busy += 1
            try:
                return self.tape.function(function, args, kwargs)
            finally:
                self._busy -= 1

        return apply

    def _before(self, module: nn.Module, args: Any) -> None:
        if is_wrapper(module):
            return
        top = not self._depth and not self._busy and _holds_anything(module)
        counts = bool(self._depth) or (not self._busy and top)
        node = None
        if top:
            self._busy += 1
            try:
                node = self._called(module, args)
            except Exception as error:  # the user's module is not to fail for being watched
                self.tape.failure = self.tape.failure or f"{type(error).__name__}: {error}"
                self.tape.recording = False
            finally:
                self._busy -= 1
        self._stack.append((module, node, counts))
        self._depth += counts

    def _called(self, module: nn.Module, args: Any) -> Node | None:
        """A module is called from outside all others."""
        trained = any(p.requires_grad for p in module.parameters())
        if torch.is_grad_enabled() and trained:
            self._look_at_mode(module)
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
            self._busy += 1
            try:
                node.kwargs = self.tape.encode(dict(kwargs))
                error = sys.exc_info()[1]
                if output is None and error is not None:
                    self.tape.failed = node, error
                self.tape.put_out(node, output)
            finally:
                self._busy -= 1

    def _look_at_mode(self, module: nn.Module) -> None:
        """Which dropouts are off, and which trained normalizations do not follow their batches, in the module that runs."""
        if id(module) not in self._modes:
            self._modes[id(module)] = _dropouts(module), _norms(module)
        dropouts, norms = self._modes[id(module)]
        off = tuple(name for name, m in dropouts if not m.training)
        frozen = [(name, m) for name, m in norms if not m.training and (m.weight is None or m.weight.requires_grad)]
        fresh = any(m.num_batches_tracked is not None and not m.num_batches_tracked.item() for _, m in frozen)
        ids = frozenset(id(p) for p in module.parameters())
        self._off[id(module)] = module, ids, off, tuple(n for n, _ in frozen), fresh

    # ---------------------------------------------------------------- backward

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return original(tensors, grad_tensors, *args, **kwargs)
            losses = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
            self._busy += 1
            try:
                passes = [self._pass(t, grad_tensors is not None) for t in losses if isinstance(t, torch.Tensor)]
                for watched in self.optimizers.values():
                    watched.settle()
                result = original(tensors, grad_tensors, *args, **kwargs)
                self._claim(passes)
            finally:
                self._busy -= 1
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
        return Pass(loss.detach() / factor, ref, place, _leaves(loss), factor, given, self.tape.unknown, len(self.tape.cuts))

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
            self._busy += 1
            try:
                self.owners.own([tensor])
            finally:
                self._busy -= 1

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if type(optimizer).__module__.startswith("accelerate") or self._busy:
            return None
        self._busy += 1
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
            busy, self._busy = self._busy, 0
            try:
                return closure(*args, **kwargs)
            finally:
                self._busy = busy

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
        mine = [m for m in self._off.values() if m[1] & ids]
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
                off=tuple(name for m in mine for name in m[2]),
                frozen=tuple(name for m in mine for name in m[3]),
                fresh=any(m[4] for m in mine),
                evaluated=bool(mine) and all(not m[0].training for m in mine),
                fingerprint=_fingerprint(passes),
                epoch=sum(count for _, count in self.loaders.values()),
                edited=watched.edited(),
            )
        )
        watched.live, watched.cleared, watched.unscaled = [], [], False
        self._off = {k: m for k, m in self._off.items() if not m[1] & ids}

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
        self._busy -= 1
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
            if not self._busy and not type(optimizer).__module__.startswith("accelerate"):
                self.watched(optimizer)

        return made

    def _clearing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def zero_grad(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            watched = self.optimizers.get(id(optimizer))
            if watched is not None and watched.clear_site is None:
                watched.clear_site = location_of_frame(outside())
            return original(optimizer, *args, **kwargs)

        return zero_grad

    # ------------------------------------------------- clipping, scaler, schedule

    def _clipping(self, kind: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return original(parameters, *args, **kwargs)
            given = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            name = "max_norm" if kind == "norm" else "clip_value"
            threshold = float(args[0] if args else kwargs.get(name, float("inf")))
            self._busy += 1
            try:
                touched = self._note_clip(kind, threshold, given)
                result = original(given, *args, **kwargs)
                for watched in touched:
                    watched.note_version()
            finally:
                self._busy -= 1
            return result

        return clip

    def _note_clip(self, kind: Any, threshold: float, given: list[torch.Tensor]) -> list[Watched]:
        site = location_of_frame(outside())
        clip = self.clips.setdefault((kind, site), Clip(kind, threshold, site))
        ids = set(map(id, given))
        touched = [w for w in self.optimizers.values() if w.ids & ids]
        for watched in touched:
            watched.settle()
        clip.owners |= {id(w.optimizer) for w in touched}
        clip.calls += 1
        clip.threshold, clip.parameters = threshold, len(given)
        if not given:
            clip.empty += 1
        elif not touched:
            clip.foreign += bool(self.optimizers)
        elif all(p.grad is None or not bool(p.grad.coalesce().values().any() if p.grad.is_sparse else p.grad.any()) for p in given):
            clip.early += not any(w.live for w in touched)
        elif not any(w.live for w in touched):
            clip.late += any(w.steps for w in touched)
        elif any(p.factor != 1 for w in touched if not w.unscaled for p in w.live):
            clip.scaled += 1
        return touched

    def _scaler_made(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def made(scaler: Any, *args: Any, **kwargs: Any) -> None:
            original(scaler, *args, **kwargs)
            asked = signature.bind(scaler, *args, **kwargs).arguments.get("enabled", True)
            if asked:
                self.scalers[id(scaler)] = scaler, Scaler(scaler.is_enabled())

        return made

    def _scaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            known = self.scalers.get(id(scaler))
            if known is None or not isinstance(outputs, torch.Tensor):
                return original(scaler, outputs)
            self._busy += 1
            try:
                result = original(scaler, outputs)
            finally:
                self._busy -= 1
            noted = known[1]
            noted.scaled += 1
            noted.scale_site = noted.scale_site or location_of_frame(outside())
            noted.factor = scaler.get_scale() if scaler.is_enabled() else 1.0
            if result is not outputs:
                result._gradcheck_factor = noted.factor
                self.tape.alias(result, self.tape.ref(outputs))
            return result

        return scale

    def _unscaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale(scaler: Any, optimizer: Optimizer) -> Any:
            result = original(scaler, optimizer)
            if id(scaler) in self.scalers:
                watched = self.watched(optimizer)
                watched.unscaled = True
                watched.note_version()
            return result

        return unscale

    def _scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            known = self.scalers.get(id(scaler))
            if known is not None:
                known[1].steps += 1
                known[1].step_site = known[1].step_site or location_of_frame(outside())
            scaler._gradcheck_stepping = known is not None
            try:
                return original(scaler, *args, **kwargs)
            finally:
                del scaler._gradcheck_stepping

        return step

    def _scaler_update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            if id(scaler) in self.scalers:
                self.scalers[id(scaler)][1].updates += 1
            return original(scaler, *args, **kwargs)

        return update

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
            if not self._busy:
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


def _leaves(loss: torch.Tensor) -> frozenset[int]:
    """ids of the leaves that a loss sends gradient to."""
    if loss.grad_fn is None:
        return frozenset((id(loss),)) if loss.requires_grad else frozenset()
    found: set[int] = set()
    seen, pending = {loss.grad_fn}, [loss.grad_fn]
    while pending and len(seen) < MOST_LEAVES:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return frozenset(found)


def _fingerprint(passes: list[Pass]) -> int | None:
    """Of the tensors that the modules were called with."""
    inputs = [c.value for p in passes if p.ref is not None for n in calls_behind(p.ref.node) for c in n.constants()]
    return hash(tuple(map(_digest, inputs))) if inputs else None


def _digest(tensor: torch.Tensor) -> int:
    flat = tensor.reshape(-1)
    if flat.numel() > 2 * FINGERPRINT:
        flat = torch.cat([flat[:FINGERPRINT], flat[-FINGERPRINT:]])
    return hash((tuple(tensor.shape), flat.cpu().view(torch.uint8).numpy().tobytes() if flat.numel() else b""))


def _dropouts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = []
    for name, m in module.named_modules():
        rate = getattr(m, "p", 0.0) if isinstance(m, nn.modules.dropout._DropoutNd) else getattr(m, "dropout", 0.0)
        recurrent = isinstance(m, (nn.RNNBase, nn.MultiheadAttention))
        if isinstance(rate, (int, float)) and rate > 0 and (isinstance(m, nn.modules.dropout._DropoutNd) or recurrent):
            found.append((name, m))
    return found


def _norms(module: nn.Module) -> list[tuple[str, Any]]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [(name, m) for name, m in module.named_modules() if isinstance(m, kinds) and m.running_mean is not None]
