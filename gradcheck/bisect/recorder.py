"""Listens to a training loop and its layers, and records what passes, in order. Nothing is changed: no number drawn, no value written."""

import functools
import hashlib
import math
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import Optimizer

from gradcheck.bisect.recording import LARGEST, SKETCH, Event, Kind, LayerFacts, Print, RunRecording
from gradcheck.instrument.loop_hooks import LoopHooks, LoopListener
from gradcheck.instrument.running_code import is_wrapper, variable_of
from gradcheck.live.models import living_modules, living_optimizers, unwrapped
from gradcheck.workload.source_sites import display_path, record_sites
from gradcheck.workload.tensors import tensors_in

_WIDTH = 4096  # signs of a row; those of rows are of the same table, so that 16 million numbers have signs of their own
_ROWS = 256  # that are turned into float64 together: 8 MB


def fingerprint(tensor: torch.Tensor, scale: float = 1.0) -> Print | None:
    """Of a tensor of any layout and device, divided by `scale`. Waits for the device. None for one whose numbers cannot be read."""
    try:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return _of(tensor.detach(), scale)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError):
        return None


def _of(tensor: torch.Tensor, scale: float) -> Print:
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    local = getattr(tensor, "to_local", None)
    if local is not None:
        tensor = local()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.to("cpu").contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=8).hexdigest() if scale == 1.0 and flat.numel() else ""
    square, sums = _sketch(flat, scale)
    return Print(shape, dtype, digest, math.sqrt(square), tuple(sums))


def _sketch(flat: torch.Tensor, scale: float) -> tuple[float, list[float]]:
    """The sum of the squares, and the sums with SKETCH patterns of random signs: their mean squared difference between two tensors is
    about the squared distance of these (Johnson and Lindenstrauss; Achlioptas 2003 for signs)."""
    signs = _signs()
    square, sums = 0.0, torch.zeros(SKETCH, dtype=torch.float64, device="cpu")
    for start in range(0, flat.numel(), _WIDTH * _ROWS):
        part = flat[start : start + _WIDTH * _ROWS].to(torch.float64) / scale
        square += float((part * part).sum())
        whole = part.numel() // _WIDTH * _WIDTH
        row = start // _WIDTH
        if whole:
            rows = torch.arange(row, row + whole // _WIDTH, device="cpu") % _WIDTH
            sums += ((part[:whole].view(-1, _WIDTH) @ signs) * signs[rows]).sum(0)
        if whole < part.numel():
            rest = part[whole:]
            sums += (rest @ signs[: rest.numel()]) * signs[(row + whole // _WIDTH) % _WIDTH]
    return square, sums.tolist()


@functools.cache
def _signs() -> torch.Tensor:
    """(_WIDTH, SKETCH). Drawn from its own generator, so that the program's is left alone."""
    generator = torch.Generator("cpu")
    generator.manual_seed(0)
    return torch.randint(0, 2, (_WIDTH, SKETCH), generator=generator, device="cpu").double() * 2 - 1


def rows(tensor: torch.Tensor, most: int) -> list[str]:
    """A digest of each sample of a batch, along the first dimension; none if there are more than `most`."""
    if not tensor.dim() or tensor.layout is not torch.strided or not 0 < tensor.size(0) <= most:
        return []
    with torch._C.DisableTorchFunction(), torch.no_grad():
        array = tensor.detach().to("cpu").contiguous().view(tensor.size(0), -1).view(torch.uint8).numpy()
        return [hashlib.blake2b(row.tobytes(), digest_size=4).hexdigest() for row in array]


SAMPLES = 1024  # of a batch, that are told apart


class EventRecorder(LoopListener):
    """`install`, run the program; `enough` is called when `wanted` steps were taken. A step ends when the first optimizer that steps has
    stepped; what others do falls into the step that it follows."""

    def __init__(self, wanted: int, enough: Callable[[], None]) -> None:
        self.wanted, self.enough, self.run = wanted, enough, RunRecording()
        self.process = os.getpid()  # forks of the program are not recorded
        self.main: Optimizer | None = None
        self._events: list[Event] = []
        self._count: Counter[tuple[str, str]] = Counter()
        self._names: dict[int, str] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._buffers: dict[str, torch.Tensor] = {}
        self._roots: list[nn.Module] = []
        self._depth: list[tuple[nn.Module, int]] = []  # calls that run, and how many events there were when they began
        self._before: dict[str, torch.Tensor] = {}  # parameters, before the step that is being taken
        self._left: dict[str, str] = {}  # digests of gradients after the last backward pass
        self._scale = 1.0  # of the gradients, by a GradScaler
        self._stack, self._handles = ExitStack(), list[Any]()
        self.hooks = LoopHooks(self)

    def install(self) -> None:
        self.sites = self._stack.enter_context(record_sites())
        warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks")
        self._handles = [register_module_forward_pre_hook(self._begins), register_module_forward_hook(self._ended, with_kwargs=True)]
        self.hooks.install()

    def remove(self) -> None:
        """Events that belong to no complete step are kept as a last one: the program may have failed in it."""
        self._stack.close()
        self.hooks.remove()
        while self._handles:
            self._handles.pop().remove()
        if self._events:
            self._close()
        error = self.hooks.failure
        self.run.failure = f"{type(error).__name__}: {error}" if error is not None else ""

    # ------------------------------------------------------------------ layers

    def _begins(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not self._listens():
            return
        if not self._depth and any(p.requires_grad for p in module.parameters()):
            self._start()
            if id(unwrapped(module)) not in self._names:
                self._know(unwrapped(module))
        self._depth.append((module, len(self._events)))

    def _ended(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        place = next((i for i in reversed(range(len(self._depth))) if self._depth[i][0] is module), None)
        if place is None:
            return
        begun = self._depth[place][1]
        del self._depth[place:]  # those above it are calls that raised
        module = self._inside(module, begun)
        name = self._names.get(id(module))
        if name is None or not self._listens():
            return
        if not any(id(m) in self._names for m, _ in self._depth):
            self._note_inputs(name, args, kwargs, begun)
        if name not in self.run.layers:
            self._describe(module, name)
        for tensor in tensors_in(output):
            call = self._note("forward", name, tensor, "" if module.training else "eval")
            if tensor.requires_grad and call is not None:
                tensor.register_hook(self._gradient_of(name, call))

    def _inside(self, module: nn.Module, begun: int) -> nn.Module:
        """The module that is known by name: behind a compiled one whose own hooks are compiled away."""
        if type(module).__name__ != "OptimizedModule":
            return module
        inner = unwrapped(module)
        name = self._names.get(id(inner))
        if name is not None and name not in self.run.compiled:
            self.run.compiled.append(name)
        seen = any(e.kind == "forward" and e.name == name for e in self._events[begun:])
        return module if seen else inner

    def _gradient_of(self, name: str, call: int) -> Callable[[torch.Tensor], None]:
        def came(gradient: torch.Tensor) -> None:
            if self._listens(grad=False):
                self._add("backward", name, call, gradient, scale=self._scale)

        return came

    def _listens(self, *, grad: bool = True) -> bool:
        return (torch.is_grad_enabled() or not grad) and os.getpid() == self.process and len(self.run.steps) < self.wanted

    def _note_inputs(self, name: str, args: Any, kwargs: Any, begun: int) -> None:
        """Inputs come before what was computed from them."""
        computed, self._events = self._events[begun:], self._events[:begun]
        for tensor in tensors_in((args, kwargs)):
            self._note("input", name, tensor)
            self.run.samples[-1] += rows(tensor, SAMPLES)
        self._events += computed

    def _describe(self, module: nn.Module, name: str) -> None:
        site = self.sites.get(module)
        place = f"{display_path(site.path)}:{site.line}" if site is not None else ""
        holds = any(True for _ in module.children())
        self.run.layers[name] = LayerFacts(type(module).__name__, "" if holds else module.extra_repr(), place, holds)

    # ------------------------------------------------------------------- names

    def _know(self, module: nn.Module | None, held: Set[int] = frozenset(), *, late: bool = False) -> None:
        """Names the layers and parameters of the outermost modules around one that is called, or that hold parameters which are stepped.
        `late`: after a forward pass, which may have written to buffers."""
        living = [m for m in living_modules() if not is_wrapper(m)]
        inner = {id(c) for m in living for c in m._modules.values() if c is not None}
        known = {id(m) for m in self._roots}
        made = {key: place for place, key in enumerate(self.sites.living())}
        mine = held - {id(p) for p in self._parameters.values()}
        outer = [m for m in living if id(m) not in inner | known]
        found = [m for m in outer if any(x is module for x in m.modules()) or any(id(p) in mine for p in m.parameters())]
        for root in sorted(found, key=lambda m: made.get(id(m), len(made))):
            place = len(self._roots)
            prefix = f"{variable_of(root) or type(root).__name__.lower()}." if place else ""
            taken = any(n.startswith(prefix) for n in self._names.values())
            self._roots.append(root)
            self._name(root, f"{place}.{prefix}" if place and taken else prefix, late)

    def _name(self, root: nn.Module, prefix: str, late: bool) -> None:
        for name, module in root.named_modules():
            self._names.setdefault(id(module), _plain(f"{prefix}{name}").removesuffix("."))
            if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
                self.run.compiled.append(_plain(f"{prefix}{name}").removesuffix("."))
        for name, parameter in root.named_parameters():
            self._parameters[_plain(prefix + name)] = parameter
            self._note("weight", _plain(prefix + name), parameter)
        for name, buffer in root.named_buffers():
            self._buffers[_plain(prefix + name)] = buffer
            if not late:
                self._note("buffer", _plain(prefix + name), buffer)

    # ------------------------------------------------------------------- steps

    def _start(self) -> None:
        """Something of a step is about to be seen."""
        if len(self.run.random) == len(self.run.steps) < self.wanted:
            self.run.random.append(random_state())
            self.run.samples.append([])

    def before_backward(self, losses: Sequence[torch.Tensor], given: bool) -> None:
        if not self._listens(grad=False):
            return
        self._start()
        if not self._roots:  # the whole step is compiled, or computed by hand
            held = {id(p) for o in living_optimizers() for g in o.param_groups for p in g["params"]}
            self._know(None, held, late=True)
        for loss in losses:
            self._note("loss", "", loss, scale=self._scale)

    def after_backward(self, done: bool) -> None:
        if done and self._listens(grad=False):
            self._gradients("gradient", self._parameters)

    def _gradients(self, kind: Kind, names: Iterable[str]) -> None:
        for name in names:
            gradient = self._parameters[name].grad
            if gradient is not None:
                self._note(kind, name, gradient, scale=self._scale)
                self._left[name] = _digest(gradient)

    def scaled(self, scaler: Any, loss: torch.Tensor, result: torch.Tensor | None) -> None:
        self._scale = float(scaler.get_scale()) if scaler.is_enabled() else 1.0

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None:
        self._scale = 1.0

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if len(self.run.steps) >= self.wanted and os.getpid() == self.process:
            self.enough()  # the program went on
        if not self._listens(grad=False):
            return
        self._start()
        own = {id(p) for g in optimizer.param_groups for p in g["params"]}
        if own - {id(p) for p in self._parameters.values()}:
            self._know(None, own, late=True)
        self.main = self.main or optimizer
        mine = {name: p for name, p in self._parameters.items() if id(p) in own}
        self._gradients("edited", [n for n, p in mine.items() if p.grad is not None and _digest(p.grad) != self._left.get(n, "")])
        self._note_settings(optimizer)
        self._before = {name: p.detach().clone() for name, p in mine.items()}

    def _note_settings(self, optimizer: Optimizer) -> None:
        names = {id(p): name for name, p in self._parameters.items()}
        for group in optimizer.param_groups:
            found = {k: _said(v) for k, v in group.items() if k != "params" and isinstance(v, (bool, int, float, str, tuple, torch.Tensor))}
            found["optimizer"] = type(optimizer).__name__
            for name in [names[id(p)] for p in group["params"] if id(p) in names]:
                known = self.run.settings.setdefault(name, [])
                if not known or known[-1][1] != found:
                    known.append((len(self.run.steps), found))

    def after_step(self, optimizer: Optimizer) -> None:
        if not self._listens(grad=False):
            return
        for name, before in self._before.items():
            self._note("update", name, self._parameters[name].detach().double() - before.double())
        self._before = {}
        if optimizer is not self.main:
            return
        for name, buffer in self._current_buffers():
            self._note("state", name, buffer)
        self._close()
        if len(self.run.steps) >= self.wanted or self.run.full:
            self.wanted = len(self.run.steps)
            self.enough()

    def _current_buffers(self) -> Iterable[tuple[str, torch.Tensor]]:
        for root in self._roots:
            names = {id(m): self._names.get(id(m), "") for m in root.modules()}
            for module in root.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and f"{names[id(module)]}.{name}".removeprefix(".") in self._buffers:
                        yield f"{names[id(module)]}.{name}".removeprefix("."), buffer

    def _close(self) -> None:
        self.run.steps.append(self._events)
        self._events, self._count = [], Counter()
        self.run.full = sum(map(len, self.run.steps)) >= LARGEST

    # ------------------------------------------------------------------ events

    def _note(self, kind: Kind, name: str, tensor: torch.Tensor, note: str = "", scale: float = 1.0) -> int | None:
        """Counts its calls."""
        call = self._count[kind, name]
        self._count[kind, name] += 1
        return call if self._add(kind, name, call, tensor, note, scale) else None

    def _add(self, kind: Kind, name: str, call: int, tensor: torch.Tensor, note: str = "", scale: float = 1.0) -> bool:
        found = fingerprint(tensor, scale)
        if found is None:
            self.run.unread += 1
            return False
        self._events.append(Event(kind, name, call, found, note))
        return True


def _plain(name: str) -> str:
    """The name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _digest(tensor: torch.Tensor) -> str:
    found = fingerprint(tensor)
    return found.digest if found is not None else ""


def _said(value: Any) -> str:
    return f"{float(value):g}" if isinstance(value, (float, torch.Tensor)) else str(value)


def random_state() -> dict[str, str]:
    """Digests of the generators' states, by name."""
    states = {"Python": repr(random.getstate()).encode(), "torch": torch.get_rng_state().numpy().tobytes()}
    if torch.cuda.is_initialized():
        states["CUDA"] = b"".join(s.numpy().tobytes() for s in torch.cuda.get_rng_state_all())
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states["NumPy"] = repr([x.tobytes() if hasattr(x, "tobytes") else x for x in numpy.random.get_state(legacy=True)]).encode()
    return {name: hashlib.blake2b(state, digest_size=8).hexdigest() for name, state in states.items()}
