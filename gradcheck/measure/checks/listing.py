"""The calls of torch's functions that a loss is computed with, and what it is a sum of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradcheck.instrument.activation_recorder import caller
from gradcheck.instrument.loss_calls import LOSSES, reduction_of
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import IdentityTable, tensors_in

DEEP = 200  # sums and scales on the way from the loss to a term

SUMS = frozenset("add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ subtract rsub stack cat".split())
_JOINS = frozenset(("stack", "cat"))
SCALES = frozenset(
    "mul __mul__ __rmul__ __imul__ mul_ multiply div __div__ __truediv__ __itruediv__ true_divide div_ divide neg __neg__ negative".split()
)
_SAME = frozenset("mean sum nanmean nansum view reshape squeeze unsqueeze flatten to float double clone contiguous".split())
_DIFFERENCES = frozenset("sub __sub__ __rsub__ subtract rsub".split())
_SHAPED = frozenset(("expand_as", "view_as", "reshape_as", "type_as"))  # of their other tensor they take the shape alone
_NO_VALUES = frozenset("zeros_like ones_like empty_like rand_like randn_like full_like new_zeros new_ones size dim".split())


@dataclass(eq=False)
class ListedCall:
    """The result of a function of torch, and what it was computed from."""

    name: str
    tensor: torch.Tensor
    place: Location | None
    live: bool  # it carries gradient
    made: bool  # it does not, but was computed from something that does
    counted: bool  # likewise, by way of whole numbers or truth values
    is_loss: bool
    given: list[torch.Tensor] = field(default_factory=list)
    sources: list[ListedCall | None] = field(default_factory=list)
    factor: float = 1.0  # of the loss before it: by which it multiplies the mean of what it is given
    reduction: str = ""  # of a loss function
    uses: int = 0

    @property
    def calls(self) -> list[ListedCall]:
        return [x for x in self.sources if x is not None]


class Listing(TorchFunctionMode):
    """Every call of a function while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.known: IdentityTable[torch.Tensor, ListedCall] = IdentityTable()
        self.derivatives: list[ListedCall] = []
        self.differences: list[ListedCall] = []

    def of(self, tensor: torch.Tensor) -> ListedCall | None:
        return self.known.get(tensor)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        every = list(tensors_in((args, kwargs), 3))[: 1 if name in _SHAPED else None]
        known = [self.of(t) for t in every]
        output = function(*args, **kwargs)
        if name == "__get__" and getattr(getattr(function, "__self__", None), "__name__", "") != "data":
            return output
        if name == "__set__" or name in _NO_VALUES:
            return output
        counted = any(c.counted for c in known if c is not None)
        of_live = counted or any(t.requires_grad for t in every)
        results = [(n, t) for n, t in enumerate(tensors_in(output, 2)) if t.is_floating_point() or of_live]
        place = location_of_frame(caller()) if results else None
        for n, tensor in results:
            own = slice(n, n + 1) if name == "broadcast_tensors" else slice(None)
            given, sources = every[own], known[own]
            live = tensor.requires_grad
            made = not live and (any(t.requires_grad for t in given) or any(c.made for c in sources if c is not None))
            whole = made and not tensor.is_floating_point()
            call = ListedCall(
                name, tensor, place, live, made and not whole, whole or (counted and not live), function in LOSSES, given, sources
            )
            call.factor = _factor(name, args, tensor)
            call.reduction = reduction_of(function, args, kwargs) if call.is_loss else ""
            self.known[tensor] = call
            if function is torch.autograd.grad and (kwargs.get("create_graph") or (len(args) > 4 and args[4])):
                self.derivatives.append(call)
            if name in _DIFFERENCES and len(given) == 2 and all(t.requires_grad for t in given):
                self.differences.append(call)
        for source in known:
            if source is not None:
                source.uses += 1
        return output


def terms_of(call: ListedCall, entries: bool = False) -> Iterator[tuple[ListedCall, float]]:
    """The summands of a loss, each with its factor; `entries`: what is one number already is not taken apart."""
    pending = [(call, 1.0)]
    for _ in range(DEEP):
        if not pending:
            return
        here, factor = pending.pop()
        parts = parts_of(here) if here is call or not entries or here.tensor.numel() > 1 else []
        if not parts:
            yield here, factor
        for tensor, source in parts:
            share = tensor.numel() / max(1, here.tensor.numel()) if here.name in _JOINS else 1.0
            pending += [(source, factor * here.factor * share)] if source is not None else []


def behind(call: ListedCall, depth: int = -1) -> Iterator[ListedCall]:
    """A call and those that it was computed from; `depth`: so many operations back."""
    seen: set[int] = set()
    pending = [(call, depth)]
    while pending:
        here, left = pending.pop()
        if id(here) not in seen:
            seen.add(id(here))
            yield here
            pending += [(c, left - 1) for c in here.calls] if left else []


def parts_of(call: ListedCall) -> list[tuple[torch.Tensor, ListedCall | None]]:
    """The summands, or the one tensor that a call scales or averages; none where it does something else."""
    pairs = list(zip(call.given, call.sources, strict=True))
    if call.name in SUMS or call.name in _SAME:
        return pairs
    if call.name in SCALES:
        varied = pairs if len(pairs) == 1 else [p for p in pairs if p[0].numel() > 1 or p[0].requires_grad]
        return varied if len(varied) == 1 else []
    return []


def _factor(name: str, args: Sequence[Any], result: torch.Tensor) -> float:
    """The factor by which a call multiplies the sum of its argument, if that is a single number."""
    if name == "sum":
        return float(sum(t.numel() for t in args[:1] if isinstance(t, torch.Tensor))) / max(1, result.numel())
    if name not in SCALES or len(args) < 2:
        return 1.0
    plain = [a for a in args[:2] if not isinstance(a, torch.Tensor)] or [a for a in args[:2] if _is_number(a)]
    if len(plain) != 1 or not _is_number(plain[0]):
        return 1.0
    number = float(plain[0])
    if "div" not in name or plain[0] is not args[1]:
        return number
    return 1 / number if number else 1.0


def _is_number(value: Any) -> bool:
    alone = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.requires_grad
    return alone or (isinstance(value, (int, float)) and not isinstance(value, bool))
