"""How much one supervised element weighs in the loss of each accumulated pass, and what the gradient would be if all weighed alike.

Read off the graph of the loss before its backward pass frees it. No value of a device is waited for before `weighting` is called.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import torch

from gradcheck.types.location import Location
from gradcheck.types.loop import LoopWeighting
from gradcheck.workload.dtensor import local

TENSORS = 4  # whose gradients are sampled,
ENTRIES = 1024  # at so many entries each
FEWEST_STEPS = 4  # that follow several passes each
_DEEP = 50
_MEAN, _SUM = 1, 2  # torch's numbers of reductions
# Nodes that pass a number, or a row of numbers, on.
_SAME = frozenset("ToCopy View UnsafeView Reshape Alias Clone Squeeze Unsqueeze Neg AsStrided Transpose T Permute".split())


@dataclass
class ElementWeight:
    """Of one supervised element in a loss, as the graph holds it. `factors`: numbers that the loss is multiplied by, or (True) divided."""

    factors: list[tuple[torch.Tensor | float, bool]] = field(default_factory=list)
    count: torch.Tensor | int = 0  # elements
    over: torch.Tensor | int = 1  # what a mean divides by

    def numbers(self) -> tuple[float, int]:
        """The weight, and the number of elements. It waits for the device."""
        factor = 1.0 / (float(self.over) or 1.0)
        for value, divides in self.factors:
            number = float(value)
            factor = factor * number if not divides else factor / number if number else 0.0
        return abs(factor), int(self.count)


class Weighed(Protocol):
    """A backward pass."""

    place: Location | None
    weight: ElementWeight | None  # None: it cannot be told
    gradient: torch.Tensor | None  # entries of what the gradients are after it


def gradient_sample(leaves: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
    """Entries of what is in some of the gradients after a pass."""
    given = [local(t.grad) for t in leaves.values() if t.grad is not None and t.grad.layout is torch.strided and t.grad.numel()]
    if not given:
        return None
    parts = sampled(given)
    return torch.cat([p.to(parts[0].device, torch.float32) for p in parts]).clone()


def sampled(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Entries of some of them."""
    chosen = gradients[:: max(1, len(gradients) // TENSORS)][:TENSORS]
    return [g.detach().reshape(-1)[:: max(1, g.numel() // ENTRIES)][:ENTRIES] for g in chosen]


def weighed(passes: Sequence[Weighed]) -> LoopWeighting | None:
    """Of one step. None where it has no several passes from one line, or their losses cannot be told apart into elements."""
    if len(passes) < 2 or len({p.place for p in passes}) > 1:
        return None
    known = [x for p in passes if p.weight is not None and min(x := p.weight.numbers()) > 0]
    if len(known) < len(passes):
        return None
    ratio = max(w for w, _ in known) / min(w for w, _ in known)
    counts = [n for _, n in known]
    return LoopWeighting(ratio, _difference(passes, known), min(counts), max(counts), passes[0].place, len(passes))


def weighting(steps: Iterable[LoopWeighting | None]) -> LoopWeighting | None:
    """Medians over steps. None where too few of them could be told."""
    told = [s for s in steps if s is not None]
    if len(told) < FEWEST_STEPS:
        return None
    differences = [s.difference for s in told if s.difference is not None]
    return LoopWeighting(
        median(s.ratio for s in told),
        median(differences) if differences else None,
        min(s.fewest for s in told),
        max(s.most for s in told),
        told[-1].site,
        int(median(s.passes for s in told)),
    )


def _difference(passes: Sequence[Weighed], weighed: Sequence[tuple[float, int]]) -> float | None:
    """Distance of the gradient to that of elements that weigh alike, relative to the latter."""
    samples = [p.gradient for p in passes]
    held = [s for s in samples if s is not None]
    if len(held) < len(samples) or len({len(s) for s in held}) > 1:
        return None
    own = [held[0], *(b - a for a, b in itertools.pairwise(held))]
    alike = sum(w * n for w, n in weighed) / sum(n for _, n in weighed)
    wanted = torch.stack([g * (alike / w) for g, (w, _) in zip(own, weighed, strict=True)]).sum(0)
    size = float(wanted.norm())
    return float((held[-1] - wanted).norm()) / size if size > 0 else None


def element_weight(loss: torch.Tensor) -> ElementWeight | None:
    """None where the graph of a loss does not show of what elements it is made."""
    try:
        return _read(loss.grad_fn)
    except RuntimeError:  # it was freed by a backward pass before this one
        return None


def _read(node: Any) -> ElementWeight | None:
    found = ElementWeight()
    for _ in range(_DEEP):
        if node is None:
            return None
        name = _name(node)
        live = [n for n, _ in node.next_functions if n is not None]
        if name in ("Div", "Mul") and len(live) == 1:
            other = _constant(node)
            if other is None or (isinstance(other, torch.Tensor) and other.numel() != 1):
                return None
            found.factors.append((other, name == "Div"))
        elif name in ("Mean", "Sum"):
            found.count = _elements(node, live)
            found.over = _product(node._saved_self_sym_sizes) if name == "Mean" else 1
            return found
        elif hasattr(node, "_saved_reduction"):
            return _of_loss(node, found)
        elif name == "Add" and len(live) == 2:  # of a smoothed label: both sides begin at one log_softmax
            (first, begin), (second, other) = (_way(n) for n in live)
            if begin is None or begin is not other or first == second:
                return None
            live = live if first else live[1:]
        elif name not in _SAME or not live:
            return None
        node = live[0]
    return None


def _name(node: Any) -> str:
    """`Mean` of `MeanBackward0`."""
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]


def _constant(node: Any) -> torch.Tensor | float | None:
    """The factor, or divisor, that has no graph itself."""
    if node.next_functions[0][0] is None:
        return _plain(node._saved_self) if _name(node) == "Mul" else None
    return _plain(node._saved_other)


def _plain(value: Any) -> Any:
    """This process's part of a tensor."""
    return local(value) if isinstance(value, torch.Tensor) else value


def _of_loss(node: Any, found: ElementWeight) -> ElementWeight | None:
    """Of a loss function that reduces by itself."""
    if getattr(node, "_saved_weight", None) is not None or node._saved_reduction not in (_MEAN, _SUM):
        return None
    found.count = _targets(node)
    found.over = found.count if node._saved_reduction == _MEAN else 1
    return found


def _targets(node: Any) -> torch.Tensor | int:
    ignored = getattr(node, "_saved_ignore_index", None)
    if ignored is None:
        return int(node._saved_self.numel())
    ignored = ignored - (1 << 64) if ignored >= 1 << 63 else ignored  # read as unsigned
    return (_plain(node._saved_target) != ignored).sum()


def _elements(node: Any, live: Sequence[Any]) -> torch.Tensor | int:
    """Entries that a sum, or a mean, is over, but those that a mask takes out."""
    total = _product(node._saved_self_sym_sizes)
    below = live[0] if live else None
    while below is not None and _name(below) in _SAME:
        below = below.next_functions[0][0]
    if below is None:
        return total
    kept: Any = None
    if _name(below) == "Mul" and sum(n is not None for n, _ in below.next_functions) == 1:
        kept = _constant(below)
    elif _name(below) == "MaskedFill":
        kept = ~_plain(below._saved_mask)
    elif _name(below).startswith("NllLoss") and _product(below._saved_target.shape) == total:
        return _targets(below)
    if not isinstance(kept, torch.Tensor) or not kept.numel() or total % kept.numel():
        return total
    return (kept != 0).sum() * (total // kept.numel())


def _way(node: Any) -> tuple[bool, Any]:
    """Whether a part of a loss goes through a loss function, and the log_softmax that it begins at."""
    by_function = False
    for _ in range(_DEEP):
        if node is None or _name(node) == "LogSoftmax":
            return by_function, node
        by_function = by_function or hasattr(node, "_saved_reduction")
        node = next((n for n, _ in node.next_functions if n is not None), None)
    return by_function, None


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= int(size)
    return result
