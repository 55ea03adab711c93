"""The recorder: notes what a training loop does through global hooks and thin wrappers, without changing it.

Nothing here knows where the loop came from. It listens to the events of the loop, each part to those of its subject: `backward`, `steps`,
`gradient_changes`, the journal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gradcheck.capture.backward import Backward, leaves
from gradcheck.capture.forgotten import Forgotten, Remade
from gradcheck.capture.forward import Forward
from gradcheck.capture.leaks import Leaks
from gradcheck.capture.reads import Reads
from gradcheck.capture.recording import Recording
from gradcheck.capture.retained import Retained
from gradcheck.capture.step_log import StepLog
from gradcheck.capture.steps import GradientChanges, Steps
from gradcheck.capture.structures import tensors_in
from gradcheck.capture.updates import Updates
from gradcheck.instrument.loop_hooks import LoopHooks, LoopListener
from gradcheck.instrument.patches import Patches, function_apply, push_below
from gradcheck.workload.source_sites import Sites
from gradcheck.workload.tensors import is_transformed

Transform = Callable[..., Callable[..., Any]]


class Functional:
    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def wrappers(self) -> tuple[tuple[str, Callable[[Transform], Transform]], ...]:
        """The wrappers, by the name of the function of torch.func that each wraps."""
        return ("grad", lambda original: self._wrapper(original, False)), ("grad_and_value", lambda original: self._wrapper(original, True))

    def mapping(self, original: Transform) -> Transform:
        """Wraps `vmap`: a call of what it returns is recorded as one, since what happens inside is done to all slices at once."""

        def vmap(*settings: Any, **named: Any) -> Callable[..., Any]:
            mapped, recording = original(*settings, **named), self.recording

            def call(*args: Any, **kwargs: Any) -> Any:
                if recording.busy or recording.depth or not recording.tape.recording or is_transformed():
                    return mapped(*args, **kwargs)
                recording.busy += 1
                try:
                    return recording.tape.function(mapped, args, kwargs)
                finally:
                    recording.busy -= 1

            return functools.wraps(mapped)(call)

        return vmap

    def _wrapper(self, original: Transform, with_value: bool) -> Transform:
        def transform(func: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., Any]:
            transformed = original(func, argnums, has_aux)

            def call(*args: Any, **kwargs: Any) -> Any:
                if self.recording.busy or not isinstance(argnums, int) or not _are_weights(args[argnums : argnums + 1]):
                    return transformed(*args, **kwargs)
                taken = self._gradient(func, argnums, has_aux, args, kwargs)
                if taken is None:
                    return transformed(*args, **kwargs)
                gradient, value, aux = taken
                if with_value:
                    return gradient, (value, aux) if has_aux else value
                return (gradient, aux) if has_aux else gradient

            return call

        return transform

    def _gradient(self, func: Callable[..., Any], number: int, has_aux: bool, args: Any, kwargs: Any) -> tuple[Any, Any, Any] | None:
        """Gradient, value and auxiliary output; None if the value depends on more than these weights."""
        flat, shape = pytree.tree_flatten(args[number])
        weights = [t.detach().requires_grad_() for t in flat]
        given = (*args[:number], pytree.tree_unflatten(weights, shape), *args[number + 1 :])
        with torch.enable_grad():
            output = func(*given, **kwargs)
            value, aux = output if has_aux else (output, None)
            if not isinstance(value, torch.Tensor) or not leaves(value).keys() <= set(map(id, weights)):
                return None
            gradients = torch.autograd.grad(value, weights, materialize_grads=True)
        aux = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, aux)
        return pytree.tree_unflatten(list(gradients), shape), value.detach(), aux


def _are_weights(value: Any) -> bool:
    """Whether an argument is a collection of tensors outside of all transforms, and no gradient is to flow through it."""
    tensors = pytree.tree_leaves(value) if value and isinstance(value[0], (dict, list, tuple)) else []
    plain = all(isinstance(t, torch.Tensor) and t.is_floating_point() and not t.requires_grad for t in tensors)
    return bool(tensors) and plain and not is_transformed()


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
        for home in (torch, torch.func):
            wrap(home, "vmap", self.functional.mapping)
        self._patches.put(torch.autograd.Function, "apply", classmethod(self.forward.applying(function_apply())))
        wrap(torch.Tensor, "as_subclass", self.forward.retyping)
        variable = self.forward.making_variable
        self._patches.put(type(torch.autograd.Variable), "__call__", lambda kind, *args, **kwargs: variable(kind, *args, **kwargs))
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


class Recorder(TorchFunctionMode, Recording, LoopListener):
    """Use as a context around the loop. What `observer` raises goes through the loop."""

    def __init__(self, sites: Sites, taped: int, observer: Callable[[Recorder], None] = lambda _: None) -> None:
        TorchFunctionMode.__init__(self)
        Recording.__init__(self, sites, taped, observer)
        log = StepLog(self)
        self.updates, self.forgotten, self.remade = Updates(self, log), Forgotten(self), Remade(self)
        self.retained, self.leaks, self.reads = Retained(self), Leaks(self), Reads()
        backward = Backward(self, self.updates, self.forgotten, self.remade)
        steps = Steps(self, log, self.updates)
        hooks = LoopHooks(self, self.journal, self.retained, self.leaks, backward, steps, GradientChanges(self))
        self._places = Installation(self, hooks, Forward(self, self.updates), backward, Functional(self), self.leaks, self.reads)

    def __enter__(self) -> Recorder:
        try:
            self._places.install()
            super().__enter__()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *details: Any) -> None:
        self._remove()
        super().__exit__(*details)
        self.updates.close()

    def _remove(self) -> None:
        self._places.remove()
        self.tape.recording = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if get_ident() != self.thread:
            return function(*args, **kwargs)
        if not self.busy and not self.depth:
            self.bounds.look(function, args, kwargs)
        if self.busy or self.depth or self.updates.writes(function, args, kwargs) or not self.tape.recording:
            return function(*args, **kwargs)
        return self.tape.function(function, args, kwargs)

    def follow(self) -> None:
        """The training runs in a thread of its own, which has function modes of its own."""
        self.thread = get_ident()
        push_below(self)

    def data_begun(self, loader: Any) -> None:
        self.loaders[id(loader)] = loader, self.loaders.get(id(loader), (loader, 0))[1] + 1

    def failed(self, error: Exception) -> None:
        """A fault of gradcheck's own, or of what it asked: the script's run ends with it, as it could not be judged."""
        raise error
