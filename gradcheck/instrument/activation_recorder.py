"""Taps: what flows through a forward and backward pass, recorded per call.

Global module hooks see every module, also those that the model does not list; a forward hook takes the output before an in-place successor
runs, and `Tensor.register_hook` on that output gets its gradient (full backward hooks break on in-place operations and views). Functional
calls are seen through a `TorchFunctionMode`. Nothing is attached to a module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._C import _get_function_stack_at, _len_torch_function_stack
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from gradcheck.analysis.activations import DYING, POSITIVE
from gradcheck.instrument import kinds, unit_activity
from gradcheck.instrument.deferred_statistics import DeferredStatistics
from gradcheck.instrument.tensor_statistics import readable
from gradcheck.types.layers import LayerKind, TensorStats
from gradcheck.types.location import Location
from gradcheck.workload.dtensor import whole
from gradcheck.workload.sharding import class_of
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import IdentityTable, tensors_in

_RELU: tuple[LayerKind, str] = ("activation", "relu")
# torch's handle of a global hook does not take its entry out of here.
_with_kwargs: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {})

_DTYPES = {t: str(t).removeprefix("torch.") for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}

HEADS = 4  # linear layers, the last ones of a pass, whose input is kept: no others can be the head

_MEASURED: frozenset[LayerKind] = frozenset(("linear", "conv", "recurrent", "embedding", "norm", "activation", "attention"))


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module or of a tapped function. `nodes` are autograd nodes; they are dropped after the backward pass."""

    name: str
    type: str
    kind: LayerKind
    module: nn.Module | None
    site: Location | None
    function: str | None = None
    shape: tuple[int, ...] = ()
    output: TensorStats | None = None
    gradients: list[TensorStats] = field(default_factory=list)
    output_node: Any = None
    input_nodes: tuple[Any, ...] = ()
    weight: torch.Tensor | None = None  # parameter used by a functional linear or conv call
    saturated: torch.Tensor | None = None  # 0-d on the host, as the next two: known once settled
    token_cosine: torch.Tensor | None = None
    sample_cosine: torch.Tensor | None = None  # of the last linear layers
    features: tuple[torch.Tensor, int] | None = None  # input [samples, D] of a linear layer, and its version: for their similarity
    alive: torch.Tensor | None = None  # [units] bool, on the host
    magnitudes: torch.Tensor | None = None  # [units], on the host
    effective_samples: int = 0
    measures: bool = True  # whether statistics of its output are taken
    dtype: str = ""  # of its output

    def set_output(self, stats: TensorStats) -> None:
        self.output = stats

    def set_alive(self, mask: torch.Tensor) -> None:
        self.alive = mask

    def set_magnitudes(self, sizes: torch.Tensor) -> None:
        self.magnitudes = sizes

    def set_saturated(self, share: torch.Tensor) -> None:
        self.saturated = share

    def set_token_cosine(self, cosine: torch.Tensor) -> None:
        self.token_cosine = cosine

    def set_sample_cosine(self, cosine: torch.Tensor) -> None:
        self.sample_cosine = cosine


class _Role(NamedTuple):
    """What is known of a module before it runs."""

    kind: LayerKind
    type: str
    function: str | None
    leaf: bool
    measured: bool


def _role(module: nn.Module) -> _Role:
    kind = kinds.kind_of(module)
    function = kinds.activation_of(module) if kind == "activation" else None
    return _Role(kind, class_of(module).__name__, function, kind in kinds.LEAF_KINDS, kind in _MEASURED)


_roles: IdentityTable[nn.Module, _Role] = IdentityTable()  # the same modules run at every step


def _known_role(module: nn.Module) -> _Role:
    role = _roles.get(module)
    if role is None:
        role = _roles[module] = _role(module)
    return role


class ActivationRecorder(TorchFunctionMode):
    """Records one pass. Use as `with taps: loss = step(...)`, then `loss.backward()`, then `taps.settle()`.

    `names` maps id(module) to its path in the model. With `functions=False` only modules are seen, without what they were called with,
    which costs less.
    """

    def __init__(self, names: Mapping[int, str], *, functions: bool = True) -> None:
        super().__init__()
        self.names = names
        self.functions = functions
        self.heads: Collection[str] | None = None  # layers that may be the head, where that is known
        self.calls: list[Call] = []
        self.failures: dict[str, str] = {}  # layers that could not be measured, and why
        self.hidden: dict[int, nn.Module] = {}  # modules that ran inside the model but are not listed by it
        self.stack: list[tuple[nn.Module, str, _Role]] = []
        self.leaf = 0  # depth inside a leaf module, where functional calls are not looked at
        self._paused = False  # out of the stack of function modes for that time: each call of torch would pass through it
        self.recording = False
        self.last_weighted: LayerKind | None = None
        self._pending = DeferredStatistics()
        self._outputs: dict[Any, Call] = {}
        self._sites: dict[tuple[str, str], list[Location | None]] = {}
        self._handles: list[Any] = []
        self._last_linear: list[Call] = []

    # ------------------------------------------------------------------ context

    def __enter__(self) -> ActivationRecorder:
        try:
            self._handles.append(register_module_forward_pre_hook(self._before))
            self._handles.append(register_module_forward_hook(self._after, with_kwargs=True))
            self.recording = True
            if self.functions:
                super().__enter__()
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(self, *details: Any) -> None:
        self._remove_hooks()
        self._resume()
        if self.functions:
            super().__exit__(*details)
        if details[0] is not None and issubclass(details[0], Exception):
            self.settle()  # no backward pass follows: what was seen so far is all

    def _remove_hooks(self) -> None:
        self.recording = False
        for handle in self._handles:
            handle.remove()
            _with_kwargs.pop(handle.id, None)
        self._handles.clear()

    @property
    def in_model(self) -> bool:
        return bool(self.stack)

    @property
    def module_name(self) -> str:
        return self.stack[-1][1] if self.stack else ""

    def settle(self) -> None:
        """Waits for the device, once: after the backward pass."""
        for call in self._last_linear:
            if call.features is not None and call.features[0]._version == call.features[1]:  # not overwritten since
                self.bring(unit_activity.sample_cosine(call.features[0]), call.set_sample_cosine)
            call.features = None
        self._last_linear.clear()
        self._pending.settle()

    def bring(self, value: torch.Tensor | None, receive: Callable[[torch.Tensor], None]) -> None:
        """Hands over a small result on the host, together with all others when settled."""
        if value is not None:
            self._pending.bring(value, receive)

    def release(self) -> None:
        """Lets go of autograd nodes and tensors, once the structure has been read."""
        self._outputs.clear()
        for call in self.calls:
            call.output_node, call.input_nodes, call.weight = None, (), None

    # ------------------------------------------------------------------ modules

    def _before(self, module: nn.Module, args: Any) -> None:
        if not self.recording:
            return
        name = self.names.get(id(module))
        if name is None:
            if not self.stack:
                return
            name = self._hidden_name(module)
        role = _known_role(module)
        self.stack.append((module, name, role))
        self.leaf += role.leaf
        if self.leaf == 1 and role.leaf:
            self._pause()

    def _pause(self) -> None:
        """Recorders of other kinds look into leaf modules as well."""
        depth = _len_torch_function_stack() if self.functions and type(self) is ActivationRecorder else 0
        if depth and _get_function_stack_at(depth - 1) is self:
            _pop_mode()
            self._paused = True

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            _push_mode(self)

    def _hidden_name(self, module: nn.Module) -> str:
        self.hidden.setdefault(id(module), module)
        index = list(self.hidden).index(id(module))
        return f"(unregistered {class_of(module).__name__} {index})"

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.recording or not self.stack or self.stack[-1][0] is not module:
            return
        _, name, role = self.stack.pop()
        self.leaf -= role.leaf
        if self.leaf:
            return
        self._resume()
        tensor = output if isinstance(output, torch.Tensor) else next((t for t in tensors_in(output) if _has_values(t)), None)
        if tensor is None or not _has_values(tensor):
            return
        try:
            if self.functions:
                with torch._C.DisableTorchFunction():
                    self._module_call(module, name, role, _inputs(args, kwargs), tensor)
            else:
                self._module_call(module, name, role, _inputs(args, kwargs), tensor)
        except Exception as error:  # one layer that cannot be measured spoils nothing else
            self.failures[name] = f"{type(error).__name__}: {error}"

    def _module_call(self, module: nn.Module, name: str, role: _Role, inputs: list[torch.Tensor], tensor: torch.Tensor) -> None:
        call = Call(name, role.type, role.kind, module, None, role.function, tuple(tensor.shape))
        if self.functions:
            call.input_nodes = tuple(t.grad_fn for t in inputs if t.grad_fn is not None)
        call.measures = role.measured or (role.kind == "container" and bool(self.stack))
        if not role.leaf and tensor.grad_fn in self._outputs:
            call.measures = False
        if inputs and (role.kind == "norm" or (role.kind == "linear" and (self.heads is None or name in self.heads))):
            self._similarity(call, inputs[0])
        self._record(call, tensor)

    def _similarity(self, call: Call, features: torch.Tensor) -> None:
        features, rank = whole(features), features.dim()
        if not 2 <= rank <= 3 or not features.is_floating_point() or not readable(features):
            return
        if call.kind == "linear":  # that may be the head
            if rank == 2 and not features.is_inference():
                call.features = features.detach(), features._version
                self._last_linear.append(call)
                if len(self._last_linear) > HEADS:
                    self._last_linear.pop(0).features = None
        elif rank == 3:
            self.bring(unit_activity.token_cosine(features), call.set_token_cosine)

    # ---------------------------------------------------------------- functions

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = kinds.FUNCTIONS.get(function)
        if known is None:
            if function not in kinds.CLAMPS or not kinds.is_relu_clamp(args, kwargs):
                return function(*args, **kwargs)
            known = _RELU
        output = function(*args, **kwargs)
        if self.recording and self.stack and not self.leaf:
            try:
                self._functional(known, args, kwargs, output)
            except Exception as error:
                self.failures[f"{self.module_name}:{known[1]}"] = f"{type(error).__name__}: {error}"
        return output

    def _functional(self, known: tuple[LayerKind, str], args: Any, kwargs: Any, output: Any) -> None:
        kind, function = known
        tensor = next((t for t in tensors_in(output, 1) if t.is_floating_point()), None)
        if tensor is None:
            return
        inputs = list(tensors_in((args, kwargs), 2))
        candidates = list(map(parameter_of, inputs)) if kind != "activation" else []
        weight = next((w for w in candidates if w is not None and w.dim() >= 2), None)
        if kind in ("linear", "conv", "embedding") and (weight is None or None not in candidates):
            return  # a matrix product of activations, or of weights alone
        site = location_of_frame(caller())
        canonical = function if kind == "activation" else None
        call = Call(self._functional_name(function, site), function, kind, None, site, canonical, tuple(tensor.shape), weight=weight)
        call.input_nodes = tuple(t.grad_fn for t in inputs if t.grad_fn is not None)
        call.measures = kind in _MEASURED
        self._record(call, tensor)

    def _functional_name(self, function: str, site: Location | None) -> str:
        """ "encoder:relu", and "encoder:relu#2" for a second place in the same module that calls relu."""
        sites = self._sites.setdefault((self.module_name, function), [])
        if site not in sites:
            sites.append(site)
        index = sites.index(site)
        return f"{self.module_name}:{function}" + (f"#{index + 1}" if index else "")

    # --------------------------------------------------------------- statistics

    def _record(self, call: Call, tensor: torch.Tensor) -> None:
        call.dtype = _DTYPES.get(tensor.dtype, "")
        measures = call.measures and readable(tensor)
        if measures:
            values = whole(tensor)
            self._pending.add(values, call.set_output)
            if call.kind == "activation" and call.function is not None:
                self._activation(call, values)
        node = tensor.grad_fn
        if node is not None:
            call.output_node = node
            self._outputs[node] = call
            if measures:
                tensor.register_hook(_GradientTap(call, self._pending, self.failures))
        if call.kind in ("linear", "conv", "recurrent", "attention"):
            self.last_weighted = call.kind
        self.calls.append(call)

    def _activation(self, call: Call, tensor: torch.Tensor) -> None:
        assert call.function is not None
        self.bring(unit_activity.saturated_share(tensor, call.function), call.set_saturated)
        if tensor.dim() < 2 or not tensor.numel():
            return
        axis = unit_activity.channel_axis(call.shape, self.last_weighted)
        call.effective_samples = tensor.numel() // max(1, tensor.shape[axis])
        magnitudes, complete = unit_activity.magnitudes(tensor, axis, call.function)
        self.bring(magnitudes, call.set_magnitudes)
        if call.function in DYING:
            shown = complete and call.function in POSITIVE  # a unit that is never negative is dead where its mean is 0
            self.bring(magnitudes > 0 if shown else unit_activity.alive(tensor, axis), call.set_alive)


class _GradientTap:
    """The hook on an output: statistics of the gradient that arrives."""

    __slots__ = ("call", "failures", "pending")

    def __init__(self, call: Call, pending: DeferredStatistics, failures: dict[str, str]) -> None:
        self.call, self.pending, self.failures = call, pending, failures

    def __call__(self, gradient: torch.Tensor) -> None:
        try:
            self.pending.add(whole(gradient), self.call.gradients.append)
        except Exception as error:
            self.failures[self.call.name] = f"{type(error).__name__}: {error}"


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        return [args[0]]
    return list(tensors_in((args, kwargs), 2))


def _has_values(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def parameter_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The parameter that a tensor is, or is a transpose or reshape of."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    node = tensor.grad_fn
    for _ in range(3):
        if node is None:
            return None
        variable = getattr(node, "variable", None)
        if variable is not None:
            return variable
        if kinds.node_name(node) not in kinds.NODE_TRANSPARENT:
            return None
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def caller() -> Any:
    """The frame that called into the taps."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("gradcheck.measure"):
        frame = frame.f_back
    return frame
