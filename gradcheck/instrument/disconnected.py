"""Parameters that no gradient reaches, and trainable tensors that the model does not list."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.first_pass_recorder import SeenCut
from gradcheck.instrument.graph_structure import upstream_leaves
from gradcheck.types.location import Location
from gradcheck.types.parameters import Cut, HiddenTensor
from gradcheck.workload.tensors import tensors_in

CHOICES = ("int-cast", "bool", "argmax")  # results that choose among values, as an index does


def cuts(
    unreached: Mapping[int, str],  # id(parameter) -> name: trainable, and no gradient arrives
    zero: Mapping[int, str],  # likewise, and the gradient that arrives is exactly 0
    seen: Iterable[SeenCut],
    called: set[str],  # names of the modules that ran
    holder: Mapping[str, str],  # parameter name -> module that holds it
    sites: Mapping[str, Location | None],  # module name -> where it is created
) -> tuple[Cut, ...]:
    """For each unreached parameter the first place on its way to the loss where the gradient is cut; then the ones with no such place.

    Cuts whose result was not seen to reach the loss (a copy for a log) come last. Numbers that leave torch cannot be followed.
    """
    left = dict(unreached)
    found: list[Cut] = []
    for cut in sorted(seen, key=lambda c: (not c.reaches, c.operation in CHOICES)):
        if not left:
            break
        found += _behind(cut, left, holder)
    found = _joined([*found, *_hiding(dict(zero), seen, holder)])
    for operation, ran in (("unused-output", True), ("not-called", False)):
        names = tuple(name for name in left.values() if (holder.get(name, "") in called) == ran)
        if names:
            first = holder.get(names[0], "")
            found.append(Cut(operation, first, sites.get(first), names))
    return tuple(found)


def lasting(cuts: Iterable[Cut], reached: Collection[str]) -> tuple[Cut, ...]:
    """Cuts of the first step, without the parameters that a later batch did reach (conditional branches, experts)."""
    left = (replace(c, parameters=tuple(n for n in c.parameters if n not in reached)) for c in cuts)
    return tuple(c for c in left if c.parameters)


def _hiding(zero: dict[int, str], seen: Iterable[SeenCut], holder: Mapping[str, str]) -> Iterator[Cut]:
    """Cuts in front of parameters that get a gradient of zeros only by another path: one that was multiplied by 0, say."""
    for cut in [c for c in seen if c.reaches and zero]:
        yield from _behind(cut, zero, holder)


def _behind(cut: SeenCut, left: dict[int, str], holder: Mapping[str, str]) -> Iterator[Cut]:
    """The cut with the parameters behind it that no cut before had; they are taken out of `left`."""
    leaves = [*cut.leaves, *upstream_leaves(cut.nodes)]
    names = tuple(dict.fromkeys(left.pop(id(leaf)) for leaf in leaves if id(leaf) in left))
    if names:
        in_package = cut.site is None or cut.site.detail is not None
        yield Cut(cut.operation, holder.get(names[0], cut.layer), cut.site, names, in_package)


def _joined(found: list[Cut]) -> list[Cut]:
    """A `no_grad` region is one cut, however many calls lie in it."""
    regions = [c for c in found if c.operation == "no_grad" and not c.in_package]
    if len(regions) < 2:
        return found
    first = regions[0]
    whole = Cut("no_grad", first.layer, first.site, tuple(n for c in regions for n in c.parameters))
    return [whole, *(c for c in found if c not in regions)]


def hidden(
    model: nn.Module,
    leaves: Iterable[torch.Tensor],
    ran: Iterable[nn.Module],  # modules that ran inside the model without being listed by it
    batch: Any,
    optimized: set[int],  # id of every tensor in the optimizer's groups
    sites: Mapping[int, Location],
    elsewhere: Callable[[], Iterable[int]] = tuple,
) -> tuple[HiddenTensor, ...]:
    """Trainable tensors behind the loss that `model.parameters()` does not list. `elsewhere`: ids of what other optimizers of the process
    hold, which are not missing, nor are copies of the model that a step makes and trains by hand.
    """
    listed = {id(p) for p in model.parameters()} | {id(t) for t in tensors_in(batch)}
    places = dict(_attributes(model))
    owners = {id(p): (name, m) for m in ran for name, p in m.named_parameters()}
    candidates = {id(t): t for t in leaves if id(t) not in listed}
    candidates |= {id(p): p for m in ran for p in m.parameters() if p.requires_grad and id(p) not in listed}
    for key in elsewhere() if candidates else ():
        candidates.pop(key, None)
    own = [p for p in model.parameters() if p.numel() > 1] if candidates else []
    result = []
    for key, tensor in candidates.items():
        name, owner, holder, item = places.get(key, ("", None, None, None))
        if not name and key in owners:
            local, owner = owners[key]
            if any(_is_copy(p, own) for p in owner.parameters()):
                continue
            name = f"{type(owner).__name__}.{local}"
        if not name and not isinstance(tensor, nn.Parameter):
            continue  # made again in each pass, like an initial state
        kind = type(item or owner).__name__ if owner is not None else "Parameter"
        site = sites.get(id(item)) or sites.get(id(owner)) or sites.get(id(holder))
        result.append(HiddenTensor(name, kind, tuple(tensor.shape), site, key in optimized))
    return tuple(result)


def _is_copy(parameter: torch.Tensor, listed: Iterable[torch.Tensor]) -> bool:
    """Whether it holds the numbers of one that is listed. Gains and biases do, too, as long as they have not been trained."""
    same = (p for p in listed if p.shape == parameter.shape and p.device == parameter.device and p.dtype == parameter.dtype)
    return any(torch.equal(p, parameter) and bool((p != p.flatten()[0]).any()) for p in same)


Place = tuple[str, nn.Module | None, nn.Module | None]  # expression, hidden module that holds it, the one kept in the attribute


def _attributes(model: nn.Module) -> Iterator[tuple[int, tuple[str, nn.Module | None, nn.Module, nn.Module | None]]]:
    """id(tensor) -> (expression, module that holds it, listed module with the attribute, module in it), for plain attributes."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else "self."
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules") or name.startswith(("_forward", "_backward")):
                continue
            for key, (expression, owner, item) in _inside(f"{prefix}{name}", value, 3):
                yield key, (expression, owner, module, item)


def _inside(name: str, value: Any, depth: int) -> Iterator[tuple[int, Place]]:
    if isinstance(value, nn.Module):
        for path, parameter in value.named_parameters():
            holder = value.get_submodule(path.rpartition(".")[0])
            yield id(parameter), (f"{name}.{path}", holder, value)
    elif isinstance(value, torch.Tensor):
        yield id(value), (name, None, None)
    elif depth > 0 and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inside(f"{name}[{key!r}]", item, depth - 1)
    elif depth > 0 and isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _inside(f"{name}[{i}]", item, depth - 1)
