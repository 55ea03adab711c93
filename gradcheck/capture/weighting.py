"""How much one supervised element weighs in the loss of each accumulated pass, and what the gradient would be if all weighed alike."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import median

import torch

from gradcheck.capture.events import BackwardPass, Step
from gradcheck.capture.nodes import Constant, Node, Ref
from gradcheck.capture.trace import DIVISIONS, MEANS, PRODUCTS, SAME, is_loss, number_of, reduction_of
from gradcheck.instrument.loss_calls import IGNORED
from gradcheck.instrument.loss_options import options_of
from gradcheck.types.loop import LoopWeighting
from gradcheck.workload.dtensor import local

TENSORS = 4  # whose gradients are sampled,
ENTRIES = 1024  # at so many entries each
FEWEST_STEPS = 4  # that follow several passes each
_DEEP = 50


def gradient_sample(leaves: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
    """Entries of what is in some of the gradients after a pass."""
    given = [local(t.grad) for t in leaves.values() if t.grad is not None and t.grad.layout is torch.strided and t.grad.numel()]
    if not given:
        return None
    chosen = given[:: max(1, len(given) // TENSORS)][:TENSORS]
    parts = [g.detach().reshape(-1)[:: max(1, g.numel() // ENTRIES)][:ENTRIES] for g in chosen]
    return torch.cat([p.to(parts[0].device, torch.float32) for p in parts]).clone()


def weighting(steps: Sequence[Step]) -> LoopWeighting | None:
    """Over the steps that several passes from one line lead to. None where their losses cannot be told apart into elements."""
    ratios, differences, counts, numbers = [], [], [], []
    place = None
    for step in steps:
        passes = step.passes
        if len(passes) < 2 or len({p.place for p in passes}) > 1 or step.leftover or step.edited:
            continue
        weighed = [_element(p.ref) if p.ref is not None and not p.gradient_given else None for p in passes]
        known = [x for x in weighed if x is not None and x[0] > 0 and x[1] > 0]
        if len(known) < len(passes):
            continue
        place = passes[0].place
        ratios.append(max(w for w, _ in known) / min(w for w, _ in known))
        differences.append(_difference(passes, known))
        counts += [n for _, n in known]
        numbers.append(len(passes))
    if len(ratios) < FEWEST_STEPS:
        return None
    told = [d for d in differences if d is not None]
    return LoopWeighting(median(ratios), median(told) if told else None, min(counts), max(counts), place, int(median(numbers)))


def _difference(passes: Sequence[BackwardPass], weighed: Sequence[tuple[float, int]]) -> float | None:
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


def _element(ref: Ref) -> tuple[float, int] | None:
    """Weight of one supervised element in a loss, and their number."""
    factor, node = 1.0, ref.node
    for _ in range(_DEEP):
        name = getattr(node.call, "__name__", "")
        if node.call is None:
            count = _labels(node)
            return (factor / count, count) if count else None
        live = [x for x in node.args[:2] if isinstance(x, Ref)]
        if name in DIVISIONS | PRODUCTS and len(live) == 1:
            other = number_of(next((x for x in node.args[:2] if not isinstance(x, Ref)), None))
            if not other:
                return None
            factor = factor / other if name in DIVISIONS else factor * other
        elif name in MEANS or name == "sum":
            source = live[0] if live else None
            count = source.node.counts.get(source.index, 0) if source is not None else 0
            return (factor / count if name in MEANS else factor, count) if count else None
        elif is_loss(name):
            return _of_loss(node, factor)
        elif name not in SAME or not live:
            return None
        node = live[0].node
    return None


def _of_loss(node: Node, factor: float) -> tuple[float, int] | None:
    given = options_of(node.call, node.args, node.kwargs) if node.call is not None else {}
    target = given.get("target")
    if not isinstance(target, Constant) or given.get("weight") is not None:
        return None
    ignored = int(given.get("ignore_index", IGNORED))
    count = target.value.numel() if target.value.is_floating_point() else int((target.value != ignored).sum())
    reduction = reduction_of(node)
    return (factor / count if reduction == "mean" else factor, count) if count and reduction in ("mean", "sum") else None


def _labels(node: Node) -> int:
    """Supervised positions of a model that takes labels and returns a mean loss: all of a sequence but the first."""
    labels = node.kwargs.get("labels") if "num_items_in_batch" not in node.kwargs else None
    if not isinstance(labels, Constant) or labels.value.is_floating_point():
        return 0
    values = labels.value[:, 1:] if labels.value.dim() == 2 else labels.value
    return int((values != IGNORED).sum())
