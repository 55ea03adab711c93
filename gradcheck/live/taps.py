"""Taps for a loop that is not ours: on for one training pass, blind to evaluation, and out of the way of the user's own modes."""

import itertools
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from gradcheck.instrument.activation_recorder import ActivationRecorder, Call
from gradcheck.instrument.first_pass_recorder import FirstPassRecorder
from gradcheck.instrument.loader_batches import digest, shape_of
from gradcheck.instrument.loop_journal import Modes
from gradcheck.instrument.patches import push_below
from gradcheck.instrument.running_code import here
from gradcheck.live.looks import Looks
from gradcheck.types.location import Location
from gradcheck.workload.device import is_capturing
from gradcheck.workload.tensors import tensors_in


def take_out(mode: TorchFunctionMode) -> bool:
    """Removes a function mode from wherever it lies among the active ones. False when it is missing: a call is going through it."""
    above, found = [], False
    while _len_torch_function_stack() and not found:
        other = _pop_mode()
        found = other is mode
        if not found:
            above.append(other)
    for one in reversed(above):
        _push_mode(one)
    return found


class LiveTaps(ActivationRecorder):
    """Forward passes without gradient are not looked at. Calls of each forward pass of the model are kept apart."""

    def __init__(self, names: Mapping[int, str], modes: Modes, *, functions: bool = True) -> None:
        ActivationRecorder.__init__(self, names, functions=functions)
        self._prepare(modes)

    def _prepare(self, modes: Modes) -> None:
        self.modes = modes
        self.starts: list[int] = []  # index of the first call of each forward pass
        self.inputs: list[Any] = []  # what the first pass was called with
        self.digests: list[int] = []  # of what the model was called with
        self.samples = 0  # in a batch
        self.called_site: Location | None = None
        self.looks = Looks(())
        self.on = self.captured = False
        self._active = False  # the function mode lies on torch's stack

    def start(self) -> None:
        functions, self.functions = self.functions, False  # Taps would push its mode on top
        try:
            self.__enter__()
        finally:
            self.functions = functions
        self.on = True
        if functions:
            push_below(self)
            self._active = True

    def stop(self) -> None:
        """Takes the hooks out, and the mode if it can be reached now: not inside a call that went through it. May be called again."""
        self.on = False
        self._remove_hooks()
        if self._active:
            self._active = not take_out(self)

    def _before(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # as below: what is compiled must not hold hooks
            return
        if not self.stack and self.recording:
            if not torch.is_grad_enabled():
                return
            if is_capturing():
                self.recording, self.captured = False, True
                return
            if id(module) in self.names:
                self.starts.append(len(self.calls))
                self.modes.look(module)
                if not self.inputs:
                    self.inputs = list(args)
        super()._before(module, args)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if len(self.stack) == 1 and self.recording and self.stack[0][0] is module:
            self._note_batch(args, kwargs)
        super()._after(module, args, kwargs, output)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **(kwargs or {}))
        output = super().__torch_function__(function, types, args, kwargs)
        if self.recording and self.stack:
            with suppress(Exception):  # arguments of an unexpected form
                self.looks.function(function, args, kwargs or {}, output, self.module_name, self.bring)
        return output

    def _module_call(self, module: nn.Module, name: str, role: Any, inputs: list[torch.Tensor], tensor: torch.Tensor) -> None:
        super()._module_call(module, name, role, inputs, tensor)
        self.looks.module(role.kind, module, name, inputs, tensor, self.heads is not None and name in self.heads, self.bring)

    def _note_batch(self, args: Any, kwargs: Any) -> None:
        """Of a call from outside, what the model was given."""
        with torch._C.DisableTorchFunction(), torch.no_grad(), suppress(RuntimeError, NotImplementedError):  # tensors without numbers
            given = list(tensors_in((args, kwargs)))
            self.digests += map(digest, given)
            samples = (shape_of(t)[0] for t in given if t.dim())
            self.samples, self.called_site = next(samples, 0), here()

    def take_reached(self) -> list[Call]:
        """Calls of the forward passes that the gradient reached. They are no longer in `calls`."""
        bounds = [*self.starts, len(self.calls)]
        passes = [self.calls[a:b] for a, b in itertools.pairwise(bounds)]
        reached = [any(c.gradients for c in calls) for calls in passes]
        found = [call for calls, came in zip(passes, reached, strict=True) if came for call in calls]
        left = [calls for calls, came in zip(passes, reached, strict=True) if not came]
        self.calls = [call for calls in left for call in calls]
        self.starts = [0, *itertools.accumulate(map(len, left))][:-1] if left else []
        return found

    def release_calls(self, calls: list[Call]) -> None:
        """Releases what the calls of a pass hold, and everything that belongs to no pass."""
        self.calls += calls
        self.release()


class LiveTracer(LiveTaps, FirstPassRecorder):
    """The same for the first step, which is watched more closely."""

    def __init__(self, names: Mapping[int, str], modes: Modes) -> None:
        FirstPassRecorder.__init__(self, names)
        self._prepare(modes)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling() or (not self.stack and not torch.is_grad_enabled()):
            return function(*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs)

    def forget(self) -> None:
        """Forgets what was seen so far: it belongs to another loss."""
        for seen in (self.losses, self.softmaxes, self.mixes, self.seen, self.operations, self.differences, self.zeros):
            seen.clear()
        self.cuts.clear()

    def batch(self) -> list[Any]:
        """What went into the model, and what its output was compared with: as much of a batch as can be seen."""
        return [*self.inputs, *(seen.target for seen in self.losses if seen.target is not None)]
