"""How the parameters of a model on the meta device are drawn: the draws are noted there, and repeated on a few real entries."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradcheck.instrument.patches import Patches

ENTRIES = 1 << 14  # on which a tensor's draws are repeated: gives their standard deviation within 1 %
CHANCE = 4.0  # standard errors below which their mean is taken for zero

Draw = Callable[[torch.Tensor], torch.Tensor]

_MADE: dict[str, Callable[..., Draw]] = {
    "randn": lambda *_: torch.Tensor.normal_,
    "rand": lambda *_: torch.Tensor.uniform_,
    "zeros": lambda *_: torch.Tensor.zero_,
    "ones": lambda *_: lambda x: x.fill_(1.0),
    "full": lambda size, value, *_: lambda x: x.fill_(value),
}
# What treats every entry alike.
_ENTRYWISE = frozenset(
    "normal_ uniform_ zero_ fill_ mul_ div_ add_ sub_ neg_ erfinv_ clamp_ clamp_min_ clamp_max_ exponential_ log_normal_ trunc_normal_ "
    "exp_ log_ sqrt_ rsqrt_ pow_ sign_ abs_ bernoulli_ mul div add sub neg exp log sqrt pow abs clamp".split()
)
_SAME = frozenset("detach alias clone view _unsafe_view contiguous lift_fresh _to_copy".split())


@dataclass
class Drawn:
    """Mean and standard deviation of a tensor's entries; None: draws of single entries do not tell."""

    mean: float | None = None
    std: float | None = None


class Initializers(TorchDispatchMode):
    """Active while a model is built."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: dict[int, list[Draw] | None] = {}  # by storage; None: of a kind that cannot be repeated
        self.kept: list[Any] = []  # storages: an id is that of a living one
        self.patches = Patches()
        self._library: tuple[dict[str, Any], dict[str, Any]] | None = None  # torch's functions as transformers keeps them, and as it did

    def __enter__(self) -> Any:
        makers = {"trunc_normal_": self._truncated, "orthogonal_": self._orthogonal}  # which leave meta tensors alone
        self.patches.wrap_everywhere(nn.init, makers)
        return super().__enter__()

    def _in_transformers(self) -> None:
        """Its models, once it is imported, draw on the meta device, too, where they would leave that out."""
        model = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
        if model is None:
            return
        held = getattr(sys.modules.get("transformers.initialization"), "TORCH_INIT_FUNCTIONS", {})
        self._library = held, dict(held)
        held.update({name: getattr(nn.init, name) for name in held})
        if hasattr(model, "initialize_weights"):
            self.patches.wrap(model, "init_weights", _drawing_first)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._library is not None:
            held, before = self._library
            held.update(before)
        self.patches.undo()

    def _truncated(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def trunc_normal_(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = original(tensor, *args, **kwargs)
            self.draws[self._key(tensor)] = [_repeated(original, args, kwargs)]
            return result

        return trunc_normal_

    def _orthogonal(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def orthogonal_(tensor: torch.Tensor, gain: float = 1.0, **kwargs: Any) -> Any:
            result = original(tensor, gain, **kwargs)
            std = gain / max(tensor.shape[0], tensor.numel() // tensor.shape[0]) ** 0.5
            self.draws[self._key(tensor)] = [lambda x: x.normal_(0.0, std)]
            return result

        return orthogonal_

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._library is None:
            self._in_transformers()
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.is_meta:
            self._note(function.overloadpacket.__name__ if hasattr(function, "overloadpacket") else "", function, args, kwargs, output)
        return output

    def _note(self, name: str, function: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        key = self._key(output)
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        whole = source is not None and source.numel() == output.numel()
        if name in _MADE:
            self.draws[key] = [_MADE[name](*args)]
        elif source is None or name in ("empty", "new_empty", "empty_like"):
            self.draws.setdefault(key, [])
        elif self._key(source) == key and not name.endswith("_"):
            return  # a view
        elif name in _ENTRYWISE and not any(isinstance(a, torch.Tensor) and a.dim() for a in args[1:]):
            self._follow(key, source, whole, _repeated(function, args[1:], kwargs or {}))
        elif name in _SAME:
            self._follow(key, source, whole, None)
        elif name.endswith("_") and source.numel() * source.element_size() < output.untyped_storage().nbytes():
            return  # a row of it, such as the padding's
        else:
            self.draws[key] = None

    def _follow(self, key: int, source: torch.Tensor, whole: bool, step: Draw | None) -> None:
        if source.numel() * source.element_size() < source.untyped_storage().nbytes() and key == self._key(source):
            return  # a row of it
        before = self.draws.get(self._key(source))
        self.draws[key] = [*before, *([step] if step is not None else [])] if before is not None and whole else None

    def _key(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key not in self.draws:
            self.kept.append(storage)
        return key

    def of(self, tensor: torch.Tensor) -> Drawn:
        """How the entries of a parameter are spread."""
        steps = self.draws.get(int(tensor.untyped_storage()._cdata))
        if not steps or not tensor.numel():
            return Drawn()
        x = torch.empty(min(tensor.numel(), ENTRIES), device="cpu")
        for step in steps:
            x = step(x)
        mean, std = x.mean().item(), x.std(correction=0).item()
        return Drawn(mean if abs(mean) > CHANCE * std / len(x) ** 0.5 else 0.0, std)


def _drawing_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_weights(model: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(Exception):  # one that needs numbers: of what it has not drawn the module's own draws are told
            model.initialize_weights()
        return original(model, *args, **kwargs)

    return init_weights


def _repeated(function: Any, args: Any, kwargs: dict[str, Any]) -> Draw:
    own = {name: value for name, value in kwargs.items() if name != "generator"}
    return lambda x: function(x, *args, **own)
