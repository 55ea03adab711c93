"""What changes gradients on their way through a model: hooks, values that are detached, staircases."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from gradcheck.instrument.activation_recorder import caller
from gradcheck.measure.checks.float64 import Wide
from gradcheck.measure.checks.functions import CallRecorder
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in

MOST_STOPS = 16
_STAIRS = frozenset(("round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside", "argmax", "argmin", "gt", "ge", "lt", "le", "topk"))
_STAIRS |= {f"{name}_" for name in _STAIRS} | {"__gt__", "__ge__", "__lt__", "__le__", "one_hot"}


@dataclass
class Hooked:
    """A backward hook that returned a different gradient from the one it got."""

    kind: Literal["tensor", "module"]
    layer: str
    site: Location | None
    factor: float


@dataclass
class GradientStop:
    """A place where values leave the graph although gradient could pass."""

    layer: str
    site: Location | None
    through: bool = False  # a staircase of torch that lets the gradient through


class Watch(Wide):
    """Float64 as in `Wide`, and sees what changes gradients on their way: tensor hooks, and values that are detached."""

    def __init__(self, layer: Callable[[], str]) -> None:
        super().__init__()
        self.layer = layer
        self.hooked: list[Hooked] = []
        self.stops: list[GradientStop] = []
        self.padding: dict[int, int] = {}  # id(weight of an embedding) -> row that gets no gradient
        self.recorder: CallRecorder | None = None  # what happens inside a Function is its own business
        self.stairs = False  # values that require gradient went through a staircase: rounded, compared, ranked

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "register_hook" and len(args) == 2:
            return func(args[0], self._watched(args[1], "tensor", self.layer(), location_of_frame(caller())))
        if name in ("embedding", "embedding_bag"):
            self._embedding(name, args, kwargs or {})
        output = super().__torch_function__(func, types, args, kwargs)
        inside = self.recorder is not None and self.recorder.depth > 0
        if isinstance(output, torch.Tensor) and len(self.stops) < MOST_STOPS and not inside:
            self._look(func, name, args, output)
        return output

    def _embedding(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The padding row gets no gradient; rows that are shortened, or weighted by frequency, get another one."""
        weight = next((t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor) and t.is_floating_point()), None)
        given = (
            dict(zip(("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"), args[2:], strict=False)) if name == "embedding" else {}
        )
        given |= kwargs
        if weight is not None and given.get("padding_idx") is not None:
            self.padding[id(weight)] = int(given["padding_idx"])
        if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
            self.stops.append(GradientStop(self.layer(), location_of_frame(caller())))

    def _look(self, func: Any, name: str, args: tuple[Any, ...], output: torch.Tensor) -> None:
        through = name == "gumbel_softmax" or name.startswith("fake_quantize")
        if not through and not (name in _STAIRS or (output.is_floating_point() and not output.requires_grad)):
            return
        if not any(t.requires_grad for t in tensors_in(args)):
            return
        self.stairs |= name in _STAIRS
        home = getattr(getattr(func, "__self__", None), "__name__", "")
        if through or name in ("detach", "detach_") or (name == "__get__" and home == "data") or not torch.is_grad_enabled():
            self.stops.append(GradientStop(self.layer(), location_of_frame(caller()), through))

    def _watched(
        self, hook: Callable[..., Any], kind: Literal["tensor", "module"], layer: str, site: Location | None
    ) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            result = hook(*args)
            got = args[0] if kind == "tensor" else args[1]  # a full backward hook takes module, grad_input, grad_output
            pairs = [(a, b) for a, b in zip(tensors_in(got), tensors_in(result), strict=False) if a.shape == b.shape]
            size = sum(float(a.norm()) ** 2 for a, _ in pairs)
            if size > 0 and any(not torch.equal(a, b) for a, b in pairs):
                factor = sum(float((a.conj() * b).real.sum()) for a, b in pairs) / size
                self.hooked.append(Hooked(kind, layer, site, factor))
            return result

        return watched

    def watch_modules(self, model: nn.Module, sites: Callable[[str], Location | None]) -> None:
        """Watches the full backward hooks of a copy of the user's model."""
        for name, module in model.named_modules():
            for key, hook in module._backward_hooks.items():
                module._backward_hooks[key] = self._watched(hook, "module", name, sites(name))


class ModuleStack:
    """Names of the modules that are running."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(m): name for name, m in model.named_modules()}
        self.running: list[str] = []

    def layer(self) -> str:
        return self.running[-1] if self.running else ""

    @contextmanager
    def following(self) -> Iterator[None]:
        try:
            with register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True):
                yield
        finally:
            self.running.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(self.names.get(id(module), self.layer()))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()
