"""Which rows of which tensor a constant of the loop holds, through picks, slices and what is done to every row alike.

Inputs and targets that come from two tensors of equally many rows belong together row by row, as the script got them. If the loop pairs
them differently, a simple model tells whether the targets still say anything about the inputs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradcheck.capture.births import Marks
from gradcheck.capture.nodes import Node, Ref
from gradcheck.instrument.running_code import here
from gradcheck.measure.checks.validation import explained
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopPairing

MOST_ENTRIES = 1 << 24  # of a tensor that is kept for its rows
FEWEST_SAMPLES = 100  # that are paired otherwise
MOST_SAMPLES = 1000
MOST_FEATURES = 512
MOST_CLASSES = 100
NEIGHBOURS = 5
APART = 0.5  # share of the rows that are paired otherwise
_PICKS = frozenset(("__getitem__", "index_select"))
_MOVES = frozenset(("flip", "flipud", "roll", "sort"))  # of all rows to other places


@dataclass(frozen=True, eq=False)
class Origin:
    """`rows` of `root`; `places`: of the picks, the first one first."""

    root: torch.Tensor
    rows: torch.Tensor
    places: tuple[Location | None, ...] = ()


class Lineage(Marks[Origin]):
    """`follow` the calls that make constants, `note` what stands for a tensor from now on."""

    def follow(self, name: str, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        source = args[0]
        known = self.tensors.get(source)
        if name in _MOVES or name in _PICKS:
            rows = _moved(name, function, args, kwargs, output) if name in _MOVES else _picked(name, args, kwargs)
            result = output[0] if isinstance(output, tuple) else output
            if rows is None or not result.dim() or len(rows) != len(result) or source.numel() > MOST_ENTRIES:
                return
            if len(rows) > len(source):
                return  # a table that is looked up, not data
            root, before, places = (known.root, known.rows, known.places) if known is not None else (source, None, ())
            if before is not None:
                rows = before[rows]
            self.tensors[result] = Origin(root, rows, (*places, here()))
        elif (
            known is not None
            and isinstance(output, torch.Tensor)
            and output is not source
            and output.dim()
            and len(output) == len(known.rows)
        ):
            others = (self.tensors.get(a) for a in args[1:] if isinstance(a, torch.Tensor))
            if not any(o is not None and not torch.equal(o.rows, known.rows) for o in others):
                self.tensors[output] = known

    def pairing(self, nodes_of_passes: Iterable[list[Node]], datasets: Iterable[Any]) -> LoopPairing | None:
        """None where inputs and targets are paired as they were, or nothing is known of where they come from."""
        pairs = [pair for nodes in nodes_of_passes for pair in self._of_pass(nodes)]
        if not pairs:
            pairs = [pair for d in datasets for pair in self._of_dataset(d)]
        pairs = [(x, y) for x, y in pairs if x.root is not y.root and len(x.root) == len(y.root) and x.root.dim() > 1]
        if not pairs:
            return None
        x, y = pairs[0]
        same = [(a, b) for a, b in pairs if a.root is x.root and b.root is y.root]
        one, other = torch.cat([a.rows for a, _ in same]), torch.cat([b.rows for _, b in same])
        one, other = _once(one, other)
        if len(one) < FEWEST_SAMPLES or float((one != other).float().mean()) < APART:
            return None
        longer = y if len(y.places) > len(x.places) else x
        site = next((p for p in longer.places if p is not None), None)
        return _compared(x.root, y.root, one[:MOST_SAMPLES], other[:MOST_SAMPLES], site)

    def _of_pass(self, nodes: list[Node]) -> Iterator[tuple[Origin, Origin]]:
        inputs: list[Origin] = []
        targets: list[Origin] = []
        for node in nodes:
            held = [origin for c in node.constants() if (origin := self.of_record(c)) is not None]
            (targets if node.call is not None and any(isinstance(v, Ref) for v in node.inputs()) else inputs).extend(held)
        for y in targets:
            others = [x for x in inputs if len(x.rows) == len(y.rows)]
            if others and not any(torch.equal(x.rows, y.rows) for x in others):
                yield others[0], y

    def _of_dataset(self, dataset: Any) -> Iterator[tuple[Origin, Origin]]:
        tensors = getattr(dataset, "tensors", None)
        if isinstance(tensors, tuple) and len(tensors) == 2 and all(isinstance(t, torch.Tensor) and t.dim() for t in tensors):
            known = [self.tensors.get(t) for t in tensors]
            if any(k is not None for k in known):
                x, y = (k or Origin(t, torch.arange(len(t), device="cpu")) for k, t in zip(known, tensors, strict=True))
                yield x, y


def _once(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs with each row on either side once: duplicates among the fitted and the judged samples would be learned by heart."""
    for side in (0, 1):
        _, first = np.unique((one, other)[side].numpy(), return_index=True)
        one, other = one[np.sort(first)], other[np.sort(first)]
    return one, other


def _picked(name: str, args: Any, kwargs: Any) -> torch.Tensor | None:
    index = args[1] if name == "__getitem__" and len(args) > 1 else _selected(args, kwargs)
    return _rows(index, len(args[0]))


def _moved(name: str, function: Any, args: Any, kwargs: Any, output: Any) -> torch.Tensor | None:
    """Where the rows were before a call that puts all of them elsewhere; None where it leaves them, or tears them apart."""
    source = args[0]
    if name == "sort":
        return output[1].cpu() if source.dim() == 1 else None
    if name == "roll" and source.dim() > 1 and len(args) < 3 and "dims" not in kwargs:
        return None  # over all entries as one row
    places = torch.arange(len(source), device="cpu")
    with torch._C.DisableTorchFunction():
        rows: torch.Tensor = function(places.view(-1, *[1] * (source.dim() - 1)), *args[1:], **kwargs).flatten()
    return rows if not torch.equal(rows, places) else None


def _selected(args: Any, kwargs: Any) -> Any:
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return (args[2] if len(args) > 2 else kwargs.get("index")) if dim == 0 else None


def _rows(index: Any, count: int) -> torch.Tensor | None:
    """The rows that an index picks out of `count`; None if it does something else."""
    index = index[0] if isinstance(index, tuple) and index else index
    if index is None or index is Ellipsis or isinstance(index, int) or (isinstance(index, slice) and index == slice(None)):
        return None
    if isinstance(index, torch.Tensor) and (index.dim() != 1 or index.is_floating_point()):
        return None
    with torch._C.DisableTorchFunction():
        rows = torch.arange(count, device="cpu")[index.cpu() if isinstance(index, torch.Tensor) else index]
    return rows if rows.dim() == 1 else None


def _compared(
    inputs: torch.Tensor, targets: torch.Tensor, one: torch.Tensor, other: torch.Tensor, site: Location | None
) -> LoopPairing | None:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        x = inputs.detach().cpu()[one].double().flatten(1)
        x = x[:, :: max(1, x.shape[1] // MOST_FEATURES)]
        trained, source = (_answers(targets.detach().cpu()[rows]) for rows in (other, one))
        if not all(bool(t.isfinite().all()) for t in (x, trained, source)):
            return None
        return LoopPairing(_skill(x, trained), _skill(x, source), len(one), site)


def _answers(y: torch.Tensor) -> torch.Tensor:
    labels = not y.is_floating_point() and y.dim() == 1 and int(y.min()) >= 0 and int(y.max()) < MOST_CLASSES
    return torch.nn.functional.one_hot(y.long(), MOST_CLASSES).double() if labels else y.double().reshape(len(y), -1)


def _skill(x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of the variance of y that a linear model explains on new samples, or the mean of the nearest neighbours."""
    fit = int(0.8 * len(x))
    near = torch.cdist(x[fit:], x[:fit]).topk(min(NEIGHBOURS, fit), largest=False).indices
    error = (y[:fit][near].mean(1) - y[fit:]).square().sum()
    return max(explained(x, y), float(1 - error / (y[fit:] - y[fit:].mean(0)).square().sum().clamp_min(1e-12)))
