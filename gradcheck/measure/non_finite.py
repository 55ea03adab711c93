"""Which operation turned finite numbers into NaN or infinity."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.instrument.domain import Reason, reason
from gradcheck.types.location import Location
from gradcheck.types.training import NonFinite
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in

# Masks are filled with -inf on purpose; an operation that does this is not where a number went wrong.
FILLS = frozenset(
    "masked_fill masked_fill_ fill_ full full_like new_full where tensor triu tril zeros ones empty __setitem__ expand clone to".split()
)


@dataclass(eq=False)
class _Operation:
    name: str
    layer: str
    site: Location | None
    low: float
    high: float
    in_model: bool
    dtype: str = ""  # of its results
    reason: Reason | None = None
    outputs_finite: bool = True  # gradient of its outputs


class Locator(ActivationRecorder):
    """Taps that look at every result for NaN and infinity. Slow: used once, on a step that is known to go wrong."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__(names, functions=True)
        self.forward_fault: tuple[_Operation, str] | None = None
        self.backward_fault: _Operation | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if not self.recording or name in ("__get__", "backward", "register_hook", "isfinite", "isnan"):
            return output
        results = [t for t in tensors_in(output, 2) if t.is_floating_point() and t.numel()]
        inputs = [t for t in tensors_in((args, kwargs), 2) if t.is_floating_point()]
        if not results or not inputs:
            return output
        operation = _Operation(name, self.module_name, location_of_frame(caller()), *_range(inputs), self.in_model, _dtype(results))
        self._look_forward(operation, inputs, results)
        if self.forward_fault is not None and self.forward_fault[0] is operation:
            operation.reason = reason(name, args, kwargs)
        self._look_backward(operation, inputs, results)
        return output

    def _look_forward(self, operation: _Operation, inputs: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        """Infinity counts only where gradient passes: masks are filled with it on purpose, and carry none."""
        if self.forward_fault is not None:
            return
        for kind, test in (("nan", torch.isnan), ("inf", torch.isinf)):
            made = any(_any(test, t) and (kind == "nan" or t.requires_grad) for t in results)
            if made and not any(_any(test, t) for t in inputs) and not (kind == "inf" and operation.name in FILLS):
                self.forward_fault = (operation, kind)
                return

    def _look_backward(self, operation: _Operation, inputs: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        for t in results:
            if t.requires_grad:
                t.register_hook(lambda g, o=operation: self._result_gradient(o, g))
        for t in inputs:
            if t.requires_grad:
                t.register_hook(lambda g, o=operation: self._input_gradient(o, g))

    def _result_gradient(self, operation: _Operation, gradient: torch.Tensor) -> None:
        operation.outputs_finite = operation.outputs_finite and bool(torch.isfinite(gradient).all())

    def _input_gradient(self, operation: _Operation, gradient: torch.Tensor) -> None:
        """Hooks of one tensor run once for all its consumers: the blame goes to the last one whose own gradient was finite."""
        if self.backward_fault is None and operation.outputs_finite and not bool(torch.isfinite(gradient).all()):
            self.backward_fault = operation


def _dtype(tensors: list[torch.Tensor]) -> str:
    return str(tensors[0].dtype).removeprefix("torch.")


def _any(test: Any, tensor: torch.Tensor) -> bool:
    return bool(test(tensor.detach()).any())


def _range(tensors: list[torch.Tensor]) -> tuple[float, float]:
    values = [t.detach().float() for t in tensors if t.dtype != torch.bool]
    finite = [v[torch.isfinite(v)] for v in values]
    finite = [v for v in finite if v.numel()]
    if not finite:
        return math.nan, math.nan
    return min(v.min().item() for v in finite[:1]), max(v.max().item() for v in finite[:1])


def locate(copy: Any, batch: Any, step: int, names: Mapping[int, str]) -> tuple[NonFinite, ...]:
    """Runs one forward and backward pass and says where the first number went wrong."""
    locator = Locator(names)
    copy.optimizer.zero_grad(set_to_none=True)
    try:
        with locator:
            loss = copy.loss(batch)
        bad_loss = not bool(torch.isfinite(loss.detach()))
        locator.recording = False
        if not bad_loss and loss.requires_grad:
            loss.backward()
    except Exception:  # the step is known to run unwatched; what was seen until then still counts
        bad_loss = True
    if bad_loss:
        if locator.forward_fault is None:
            return ()
        operation, kind = locator.forward_fault
        return (_noun(operation, "forward" if operation.in_model else "loss", step, kind),)
    if locator.backward_fault is not None:
        return (_noun(locator.backward_fault, "backward", step, "nan"),)
    return ()


def _noun(operation: _Operation, direction: Any, step: int, kind: Any) -> NonFinite:
    low, high = operation.low, operation.high
    return NonFinite(
        direction, operation.name, operation.layer, operation.site, step, kind, low, high, operation.dtype, reason=operation.reason
    )
