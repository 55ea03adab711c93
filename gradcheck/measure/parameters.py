"""Weights, their gradients and their real updates at the measured steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gradcheck.instrument.tensor_statistics import spread
from gradcheck.training.gradient_norms import as_numbers, as_real, gradient_of, norms_of
from gradcheck.types.location import Location
from gradcheck.types.parameters import Parameter, ParameterStep
from gradcheck.workload.dtensor import local

SAMPLE = 1 << 10  # entries of a large parameter that are followed through the optimizer's step
BLOCK = 16  # entries side by side in that sample: each place in memory costs a cache line
HALF = (torch.float16, torch.bfloat16)
ROWS_AT_ONCE = 4096  # rows compared at a time
SAME = 1e-6  # relative distance below which two rows count as equal

Numbers = npt.NDArray[np.float64]


@dataclass(eq=False)
class Watched:
    """A parameter of the copy, with what was seen of it."""

    name: str
    tensor: nn.Parameter
    layer: str
    aliases: list[str] = field(default_factory=list)
    groups: int = 0
    lr: float | None = None  # of its parameter group, as `weight_decay`
    weight_decay: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    suspicious: bool = True  # constant, or with equal rows, at the first look: looked at again
    used: bool = False
    sample: torch.Tensor | None = None  # a view of some of its entries, see `sampled`
    steps: list[ParameterStep] = field(default_factory=list)

    def sampled(self) -> torch.Tensor:
        """An even sample of the entries; the same view as long as the parameter stays where it is in memory."""
        tensor = local(self.tensor)
        if self.sample is None or self.sample.data_ptr() != tensor.data_ptr():
            self.sample = _sampled(tensor)
        return self.sample if self.sample.data_ptr() == tensor.data_ptr() else _sampled(tensor)

    def record(self) -> Parameter:
        t = self.tensor
        return Parameter(
            self.name,
            self.layer,
            tuple(t.shape),
            t.numel(),
            str(t.dtype).removeprefix("torch."),
            t.requires_grad,
            self.groups,
            tuple(self.aliases),
            self.mean,
            self.std,
            self.used,
            tuple(self.steps),
            self.lr,
            self.weight_decay,
        )


def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Watched]:
    """All parameters, tied ones once, with how many groups of the optimizer hold them."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            grouped.setdefault(id(p), []).append(group)
    found: dict[int, Watched] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(p):
            continue
        if id(p) in found:
            found[id(p)].aliases.append(name)
            continue
        groups = grouped.get(id(p), [])
        watched = found[id(p)] = Watched(name, p, name.rpartition(".")[0], groups=len(groups))
        if groups and groups[0].get("lr") is not None:
            watched.lr = float(groups[0]["lr"])
        watched.weight_decay = max((float(g.get("weight_decay") or 0.0) for g in groups), default=0.0)
        values = as_real(p.detach())
        if values.numel():
            watched.mean = values.mean().item()
            watched.std = values.std(correction=0).item()
    return list(found.values())


def records(watched: Iterable[Watched], model: nn.Module, sites: Mapping[int, Location]) -> tuple[Parameter, ...]:
    """`model`: the user's, whose parameters have these places."""
    places = {name: sites.get(id(p)) for name, p in model.named_parameters()}
    return tuple(replace(w.record(), site=places.get(w.name)) for w in watched)


class StepWatch:
    """What one optimizer step does to the parameters. Make it after the backward pass, call `after` once the step was taken."""

    @torch.no_grad()
    def __init__(self, watched: Sequence[Watched], step: int, *, look_at_rows: bool) -> None:
        self.watched = sorted((w for w in watched if _count(w.tensor)), key=lambda w: _count(w.tensor) > SAMPLE)
        self.step = step
        self.rows = look_at_rows
        self.gradients = [gradient_of(w.tensor) for w in self.watched]
        present = [g for g in self.gradients if g is not None and g.numel()]
        norms = norms_of([*(as_real(w.tensor) for w in self.watched), *present])
        self.norms, found = norms[: len(self.watched)], iter(norms[len(self.watched) :])
        self.total_norm = math.sqrt(math.fsum(n * n for n in norms[len(self.watched) :]))  # of all gradients together
        self.gradient_norms = [None if g is None else next(found) if g.numel() else 0.0 for g in self.gradients]
        largest = iter(_largest(present) if step == 0 else [None] * len(present))
        self.gradient_maxima = [next(largest) if g is not None and g.numel() else None for g in self.gradients]
        self.before = _joined([w.sampled() for w in self.watched]) if self.watched else np.empty(0)
        self.direction = self._downhill() if step == 0 and self.watched else None
        halves = any(w.tensor.dtype in HALF for w in self.watched)
        self.bounds = list(itertools.accumulate((w.sampled().numel() for w in self.watched), initial=0)) if halves else []
        self.pushed = {i: pushed for i, w in enumerate(self.watched) if (pushed := self._pushed(i, w)) is not None}

    def unscale(self, factor: float) -> None:
        """Divides what was read of the gradients by the factor of a loss scaler."""
        if factor == 1.0:
            return
        self.total_norm /= factor
        self.gradient_norms = [None if n is None else n / factor for n in self.gradient_norms]
        self.gradient_maxima = [None if n is None else n / factor for n in self.gradient_maxima]

    def _downhill(self) -> Numbers:
        """The gradient at the entries of the sample, zero where there is none."""
        pairs = zip(self.gradients, (w.tensor for w in self.watched), strict=True)
        return _joined([_sampled(g if g is not None and g.numel() == _count(p) else torch.zeros_like(local(p))) for g, p in pairs])

    def _pushed(self, i: int, w: Watched) -> npt.NDArray[np.bool_] | None:
        """Parameters of half precision: which entries of the sample have a gradient."""
        gradient = self.gradients[i]
        if w.tensor.dtype not in HALF or gradient is None or gradient.numel() != _count(w.tensor):
            return None
        return (_joined([_sampled(gradient)]) != 0) & np.isfinite(self.before[self._part(i)])

    def _part(self, i: int) -> slice:
        """Where the sample of a parameter lies among all."""
        return slice(self.bounds[i], self.bounds[i + 1])

    @torch.no_grad()
    def after(self) -> float | None:
        """Files a ParameterStep with each parameter. Returns the cosine of the whole update with the negative gradient, at step 0."""
        if not self.watched:
            return None
        now = [w.sampled() for w in self.watched]
        sizes = [x.numel() for x in now]
        starts = np.cumsum([0, *sizes[:-1]])
        change = _joined(now) - self.before
        moved = np.sqrt(np.add.reduceat(np.square(change), starts)).tolist()
        base = np.sqrt(np.add.reduceat(np.square(self.before), starts)).tolist()
        for i, w in enumerate(self.watched):
            ratio = moved[i] / base[i] if base[i] > 0 and math.isfinite(moved[i]) and w.tensor.requires_grad else None
            w.steps.append(self._noun(i, w, ratio, self._unchanged(i, change)))
        return self._cosine(change, sizes)

    def _unchanged(self, i: int, change: Numbers) -> float | None:
        pushed = self.pushed.get(i)
        if pushed is None or not pushed.any():
            return None
        return float((change[self._part(i)][pushed] == 0).mean())

    def _cosine(self, change: Numbers, sizes: Sequence[int]) -> float | None:
        if self.direction is None:
            return None
        counts = [_count(w.tensor) for w in self.watched]
        known = [g is not None and g.numel() == count for g, count in zip(self.gradients, counts, strict=True)]
        weights = np.repeat([k * c / n for k, c, n in zip(known, counts, sizes, strict=True)], sizes)
        product = -float(np.sum(weights * change * self.direction))
        scale = float(np.sum(weights * np.square(change))) ** 0.5 * float(np.sum(weights * np.square(self.direction))) ** 0.5
        return product / scale if scale > 0 and math.isfinite(scale) else None

    def _noun(self, i: int, w: Watched, ratio: float | None, unchanged: float | None) -> ParameterStep:
        norm, gradient = self.gradient_norms[i], self.gradients[i]
        if norm is not None:
            w.used = True
        duplicates, constant = None, False
        if self.rows and w.suspicious and w.tensor.dim() >= 2:
            duplicates, constant = equal_rows(w.tensor, gradient)
            w.suspicious = constant or bool(duplicates)
        return ParameterStep(
            self.step,
            self.norms[i],
            norm,
            self.gradient_maxima[i],
            norm is None or math.isfinite(norm),
            ratio,
            duplicates,
            constant,
            unchanged,
        )


def equal_rows(weight: torch.Tensor, gradient: torch.Tensor | None) -> tuple[float, bool]:
    """Share of the rows [units, fan_in] that equal another row in weight and in gradient, and whether all entries are equal.

    Rows are sorted by their product with one random vector: equal rows have equal products and come to lie side by
    side, where they are compared entry by entry.
    """
    weight = local(weight.detach())
    rows = as_real(weight).reshape(weight.shape[0], -1)
    low, high = torch.aminmax(rows) if rows.numel() else (torch.zeros(()), torch.zeros(()))
    constant = bool(low == high) and rows.numel() > 1
    if rows.shape[0] < 2 or rows.shape[1] < 2:
        return 0.0, constant
    twin = _has_twin(rows)
    if gradient is not None and gradient.numel() == rows.numel() and bool(twin.any()):
        twin &= _has_twin(gradient.reshape(rows.shape))
    return int(twin.sum()) / len(twin), constant


def _has_twin(rows: torch.Tensor) -> torch.Tensor:
    """rows: [n, d] -> bool [n]: another row is equal."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(rows.shape[1], generator=generator).to(rows.device, rows.dtype)
    largest = rows.abs().amax()
    if largest > 0:
        direction = direction / largest  # the products of tiny entries would vanish
    key = rows @ direction
    order = key.argsort()
    close = key[order].diff().abs() <= SAME * rows.shape[1] ** 0.5
    twin = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for candidates in close.nonzero().squeeze(1).split(ROWS_AT_ONCE):
        one, other = order[candidates], order[candidates + 1]
        equal = (rows[one] - rows[other]).abs().amax(1) <= SAME * largest
        twin[one[equal]] = twin[other[equal]] = True
    return twin


def _largest(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Largest |x| of each. One pass: torch's infinity norm is ten times as slow as its minimum and maximum together."""
    pairs = [torch.aminmax(t) for t in tensors]
    lows, highs = as_numbers([p.min for p in pairs]), as_numbers([p.max for p in pairs])
    return [max(-low, high) if low == low else low for low, high in zip(lows, highs, strict=True)]


def _count(tensor: torch.Tensor) -> int:
    """Real numbers in it."""
    tensor = local(tensor)
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    """An even sample of the entries [blocks, BLOCK], or all of them: a view where possible."""
    values = local(tensor.detach())
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    flat = values.reshape(-1)
    if len(flat) <= SAMPLE:
        return flat
    blocks = flat[: len(flat) // BLOCK * BLOCK].view(-1, BLOCK)
    return blocks[:: spread(len(blocks), SAMPLE // BLOCK)]


def _joined(samples: Sequence[torch.Tensor]) -> Numbers:
    """One after the other, copied."""
    first = samples[0]
    if any(t.dtype is not first.dtype or t.device != first.device for t in samples):
        samples = [t.to("cpu", torch.float64) for t in samples]
    groups = [torch.cat(list(group)).reshape(-1) for _, group in itertools.groupby(samples, key=torch.Tensor.dim)]
    return torch.cat(groups).to("cpu", torch.float64).numpy()
