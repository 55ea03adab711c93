"""What the loop does by hand to trained weights between steps to keep them within bounds; it is part of the training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradcheck.capture.events import OptimizerTrace


@dataclass(frozen=True)
class Projection:
    """A function that changes a tensor in place and, called again, changes nothing more. The arguments follow the tensor."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.function(weight, *self.args, **self.kwargs)
        return weight


@dataclass
class Projections:
    """A hook after an optimizer's step."""

    acting: Sequence[tuple[torch.Tensor, Projection]]

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for weight, projection in self.acting:
            projection.apply(weight)


NAMES = frozenset("clamp_ clamp_min_ clamp_max_ clip_ relu_ abs_ masked_fill_ mul_".split())
USUAL = 0.9  # share of the steps; of what is done less often it is not known when


@dataclass
class _Seen:
    projection: Projection
    calls: int = 1
    same: bool = True  # with the same arguments each time


class Bounds:
    """`optimizers`: those of the script."""

    def __init__(self, optimizers: Callable[[], Iterable[OptimizerTrace]]) -> None:
        self.optimizers = optimizers
        self._found: dict[tuple[int, str], _Seen] = {}  # by id of the parameter and name of the function
        self._homes: dict[int, torch.Tensor] = {}  # address -> parameter
        self._known = 0  # parameters that were looked at for their addresses

    def look(self, function: Any, args: Any, kwargs: Any) -> None:
        """A function of torch is about to be called, outside modules and steps."""
        name = getattr(function, "__name__", "")
        if name not in NAMES or not args or not isinstance(args[0], torch.Tensor):
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            weight = self._weight(args[0])
            if weight is None:
                return
            now = Projection(function, tuple(map(_kept, args[1:])), {k: _kept(v) for k, v in kwargs.items()})
            before = self._found.get((id(weight), name))
            if before is None:
                self._found[id(weight), name] = _Seen(now, same=_is_idempotent(now, weight))
            else:
                before.calls, before.same = before.calls + 1, before.same and _alike(before.projection, now)

    def of(self, key: int, steps: int) -> list[Projection]:
        """What is done to a parameter, by its id, after each of its steps."""
        mine = (seen for (owner, _), seen in self._found.items() if owner == key)
        return [seen.projection for seen in mine if seen.same and seen.calls >= USUAL * (steps - 1) > 0]

    def _weight(self, tensor: torch.Tensor) -> torch.Tensor | None:
        every = [p for w in self.optimizers() for p in w.parameters]
        if len(every) != self._known:
            self._known, self._homes = len(every), {a: p for p in every if (a := _address(p))}
        found = self._homes.get(_address(tensor))
        return found if found is not None and found.shape == tensor.shape else None


def _address(tensor: torch.Tensor) -> int:
    """0 where it has none."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _is_idempotent(projection: Projection, weight: torch.Tensor) -> bool:
    once = projection.apply(weight.detach().clone())
    return torch.equal(projection.apply(once.clone()), once)


def _alike(one: Projection, other: Projection) -> bool:
    pairs = [*zip(one.args, other.args, strict=False), *((v, other.kwargs.get(k)) for k, v in one.kwargs.items())]
    return len(one.args) == len(other.args) and one.kwargs.keys() == other.kwargs.keys() and all(_same(a, b) for a, b in pairs)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)
