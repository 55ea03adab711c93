"""Forward passes: which modules are called from outside all others, and with what."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradcheck.capture.root_modules import is_wrapper
from gradcheck.capture.tape import Node, outside
from gradcheck.workload.source_sites import location_of_frame

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


class Forward:
    """`before` and `after` are global hooks of modules, `applying` stands around `torch.autograd.Function.apply`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._stack: list[tuple[nn.Module, Node | None, bool]] = []  # modules that are being called; whether they count for the depth

    def applying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Custom functions, which torch does not show to modes, are recorded as one call."""
        recorder = self.recorder

        def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
            function = functools.partial(original, kind)
            if recorder.busy or recorder.depth or not recorder.tape.recording:
                return function(*args, **kwargs)
            recorder.busy += 1
            try:
                return recorder.tape.function(function, args, kwargs)
            finally:
                recorder.busy -= 1

        return apply

    def retyping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The same values as another kind of tensor: torch does not show that to modes either."""
        recorder = self.recorder

        def as_subclass(tensor: torch.Tensor, kind: Any) -> Any:
            if recorder.busy or recorder.depth or not recorder.tape.recording:
                return original(tensor, kind)
            return recorder.tape.function(original, (tensor, kind), {})

        return as_subclass

    def before(self, module: nn.Module, args: Any) -> None:
        recorder, tape = self.recorder, self.recorder.tape
        if is_wrapper(module):
            return
        top = not recorder.depth and not recorder.busy and not _without_values(args) and _holds_anything(module)
        counts = bool(recorder.depth) or (not recorder.busy and top)
        node = None
        if top:
            recorder.busy += 1
            try:
                recorder.updates.close_seen()
                node = self._called(module, args)
            except Exception as error:  # the user's module is not to fail for being watched
                tape.failure = tape.failure or f"{type(error).__name__}: {error}"
                tape.recording = False
            finally:
                recorder.busy -= 1
        self._stack.append((module, node, counts))
        recorder.depth += counts

    def _called(self, module: nn.Module, args: Any) -> Node | None:
        """A module is called from outside all others."""
        recorder, tape = self.recorder, self.recorder.tape
        trained = any(p.requires_grad for p in module.parameters())
        if not module.training and id(module) not in recorder.averages.called:
            recorder.averages.called[id(module)] = location_of_frame(outside())
        if torch.is_grad_enabled() and trained:
            recorder.modes.look(module)
        if not tape.recording:
            return None
        recorder.unfollowed.pop(id(module), None)
        if trained and not torch.is_grad_enabled():
            recorder.unfollowed[id(module)] = location_of_frame(outside())
        if not (trained and (torch.is_grad_enabled() or not recorder.connected)) and not tape.is_live(args):
            return None
        owner, path = recorder.owners.of(module)
        random = torch.get_rng_state() if recorder.owners.initial else None
        return tape.module(owner, path, tape.encode(args), {}, location_of_frame(outside()), random)

    def after(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """`rest`: keyword arguments and output; after an exception torch leaves the former out."""
        recorder, tape = self.recorder, self.recorder.tape
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        if is_wrapper(module):
            return
        while self._stack:
            called, node, counts = self._stack.pop()
            recorder.depth -= counts
            if called is module:
                break
        else:
            return
        if node is not None and tape.recording:
            recorder.busy += 1
            try:
                node.kwargs = tape.encode(dict(kwargs))
                error = sys.exc_info()[1]
                if output is None and error is not None:
                    tape.failed = node, error
                tape.put_out(node, output)
            finally:
                recorder.busy -= 1


def _holds_anything(module: nn.Module) -> bool:
    """Modules without parameters and buffers are looked through: losses, activations.

    Their tables are read: asking a module for its parameters may fix them, while it still builds itself.
    """
    return any(x is not None for m in module.modules() for x in (*m._parameters.values(), *m._buffers.values()))


def _without_values(args: Any) -> bool:
    """Whether a module is called to see what shapes come out."""
    return any(isinstance(x, torch.Tensor) and x.is_meta for x in args)
