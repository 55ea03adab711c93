"""Weights, their gradients and their real updates at the measured steps."""

import functools
import inspect
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gradcheck.instrument.deferred_statistics import DeferredStatistics
from gradcheck.instrument.tensor_statistics import merge, spread
from gradcheck.measure.equal_rows import EqualRows, blocks
from gradcheck.training.clip import as_real, gradient_of, mended, raw_norms
from gradcheck.types.layers import TensorStats
from gradcheck.types.location import Location
from gradcheck.types.parameters import Parameter, ParameterStep
from gradcheck.workload.device import ends, in_groups
from gradcheck.workload.dtensor import local, multiplicity, whole
from gradcheck.workload.lockstep import everyone, several, whole_norms

SAMPLE = 1 << 10  # entries of a large parameter that are followed through the optimizer's step
BLOCK = 16  # adjacent entries in that sample: each place in memory costs a cache line
HALF = (torch.float16, torch.bfloat16)

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
    exponents: tuple[int, tuple[int, ...], float] = (0, (), 0.0)  # and the largest entry: see Parameter
    suspicious: bool = True  # constant, or with equal rows, at the first look: looked at again
    used: bool = False
    sample: torch.Tensor | None = None  # a view of some of its entries, see `sampled`
    place: int = 0  # in memory, of that view
    steps: list[ParameterStep] = field(default_factory=list)

    def sampled(self) -> torch.Tensor:
        """An even sample of the entries; the same view as long as the parameter stays where it is in memory."""
        tensor = local(self.tensor)
        place = tensor.data_ptr()
        if self.sample is not None and self.place == place:
            return self.sample
        found = sampled_entries(tensor)
        if found.data_ptr() == place:  # else it is a copy, which does not follow
            self.sample, self.place = found, place
        return found

    def set_moments(self, stats: TensorStats) -> None:
        """They are unknown for a tensor that is not finite."""
        self.mean, self.std = (stats.mean, stats.std) if stats.finite else (math.nan, math.nan)
        self.exponents = stats.exponent_low, stats.exponent_counts, max(abs(stats.min), abs(stats.max))

    def record(self, site: Location | None = None) -> Parameter:
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
            site,
            *self.exponents,
        )


def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Watched]:
    """All parameters, tied ones once, with how many groups of the optimizer hold them."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            grouped.setdefault(id(p), []).append(group)
    found: dict[int, Watched] = {}
    without = nn.Module.forward
    holds = {n for n, m in model.named_modules() if "forward" not in vars(m) and inspect.getattr_static(type(m), "forward") is without}
    for name, p in model.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(p):
            continue
        if id(p) in found:
            found[id(p)].aliases.append(name)
            continue
        groups = grouped.get(id(p), [])
        watched = found[id(p)] = Watched(name, p, _layer(name, holds), groups=len(groups))
        if groups and groups[0].get("lr") is not None:
            watched.lr = float(groups[0]["lr"])
        watched.weight_decay = max((float(g.get("weight_decay") or 0.0) for g in groups), default=0.0)
    _describe(list(found.values()))
    return list(found.values())


def _layer(name: str, holds: Collection[str]) -> str:
    """The module that uses a parameter: not one that can only hold it (`holds`), such as a ParameterList."""
    name = name.rpartition(".")[0]
    while name in holds and name:
        name = name.rpartition(".")[0]
    return name


def _describe(watched: Sequence[Watched]) -> None:
    """Means and standard deviations, with one wait for all."""
    results, found = DeferredStatistics(), dict[str, TensorStats]()
    for w in watched:
        results.add(local(w.tensor.detach()), functools.partial(found.__setitem__, w.name))
    results.settle()
    said = everyone(found)
    for w in watched:
        shards = (
            [s[w.name] for s in said if w.name in s] if multiplicity(w.tensor, len(said)) else [found[w.name]] if w.name in found else []
        )
        if (stats := merge(shards)) is not None:
            w.set_moments(stats)


def mark_moved(watched: Iterable[Watched], original: nn.Module) -> set[str]:
    """Names of those that no measured step reached, and that training changed all the same: others did. They count as used from now on."""
    before = dict(original.named_parameters(remove_duplicate=False))
    moved = {w.name: w for w in watched if not w.used and w.name in before and not torch.equal(local(w.tensor), local(before[w.name]))}
    for w in moved.values():
        w.used = True
    return set(moved)


def records(watched: Iterable[Watched], model: nn.Module, sites: Mapping[int, Location]) -> tuple[Parameter, ...]:
    """`model`: the user's, whose parameters have these places."""
    places = {name: sites.get(id(p)) for name, p in model.named_parameters()}
    return tuple(w.record(places.get(w.name)) for w in watched)


class StepWatch:
    """What one optimizer step does to the parameters. Make it after the backward pass, call `after` once the step was taken."""

    @torch.no_grad()
    def __init__(self, watched: Sequence[Watched], step: int, *, look_at_rows: bool) -> None:
        self.watched = sorted((w for w in watched if w.tensor.numel()), key=lambda w: w.tensor.numel() > SAMPLE)
        self.step = step
        self.rows = look_at_rows
        self.brought: list[torch.Tensor] = []
        self.gradients = [gradient_of(w.tensor) for w in self.watched]
        present = [g for g in self.gradients if g is not None and g.numel()]
        halves = any(w.tensor.dtype in HALF for w in self.watched)
        follows = bool(self.watched) and (step == 0 or halves)
        tensors = [*(as_real(w.tensor.detach()) for w in self.watched), *present]
        groups = [
            raw_norms(tensors),
            _extremes(present) if step == 0 else [],
            joined([w.sampled() for w in self.watched]),
            joined(self._downhill()) if follows else [],
        ]
        norms, sides, before, downhill = in_groups(groups)
        self._keep_norms(mended([n for t in norms for n in t.reshape(-1).tolist()], tensors))
        pairs = zip(*(e.tolist() for e in sides), strict=True) if sides else ()
        largest = iter([max(-low, high) if low == low else low for low, high in pairs])
        self.gradient_maxima = self._over_shards([next(largest, None) if g is not None and g.numel() else None for g in self.gradients])
        self.before = _as_array(before)
        slopes = _as_array(downhill) if follows else None
        self.direction = slopes if step == 0 else None
        self.along = self._along() if step == 0 else None
        self.bounds = list(itertools.accumulate((w.sampled().numel() for w in self.watched), initial=0)) if halves else []
        self.pushed = {i: pushed for i, w in enumerate(self.watched) if (pushed := self._pushed(i, w, slopes)) is not None}

    def _keep_norms(self, norms: list[float]) -> None:
        found = iter(norms[len(self.watched) :])
        graded = [(w.tensor, next(found) if g.numel() else 0.0) for w, g in zip(self.watched, self.gradients, strict=True) if g is not None]
        tensors = [w.tensor for w in self.watched]
        norms = whole_norms([*tensors, *(t for t, _ in graded)], [*norms[: len(tensors)], *(n for _, n in graded)])
        self.norms, found = norms[: len(tensors)], iter(norms[len(tensors) :])
        self.total_norm = math.sqrt(math.fsum(n * n for n in norms[len(tensors) :]))  # of all gradients together
        self.gradient_norms = [None if g is None else next(found) for g in self.gradients]

    def _over_shards(self, largest: list[float | None]) -> list[float | None]:
        """The largest entries of whole gradients, NaN before all."""
        if not several():
            return largest
        by_parameter = [[x for x in each if x is not None] for each in zip(*everyone(largest), strict=True)]
        return [next((x for x in known if x != x), max(known)) if known else None for known in by_parameter]

    def unscale(self, factor: float) -> None:
        """Divides what was read of the gradients by the factor of a loss scaler."""
        if factor == 1.0:
            return
        self.total_norm /= factor
        self.along = [x / factor for x in self.along] if self.along else None
        self.gradient_norms = [None if n is None else n / factor for n in self.gradient_norms]
        self.gradient_maxima = [None if n is None else n / factor for n in self.gradient_maxima]

    def _downhill(self) -> list[torch.Tensor]:
        """The gradient at the entries of each sample, zero where there is none."""
        pairs = zip(self.gradients, self.watched, strict=True)
        return [sampled_entries(g) if g is not None and g.numel() == _count(w.tensor) else torch.zeros_like(w.sampled()) for g, w in pairs]

    def _along(self) -> list[float] | None:
        if self.direction is None:
            return None
        sizes = [w.sampled().numel() for w in self.watched]
        scales = [_count(w.tensor) / max(1, size) for w, size in zip(self.watched, sizes, strict=True)]
        return self._over_all_shards([_sums(self.before * self.direction, sizes, scales)])[0]

    def _pushed(self, i: int, w: Watched, slopes: Numbers | None) -> npt.NDArray[np.bool_] | None:
        """Parameters of half precision: which entries of the sample have a gradient."""
        gradient = self.gradients[i]
        if w.tensor.dtype not in HALF or slopes is None or gradient is None or gradient.numel() != _count(w.tensor):
            return None
        part = self._part(i)
        return (slopes[part] != 0) & np.isfinite(self.before[part])

    def _part(self, i: int) -> slice:
        """Where the sample of a parameter lies among all."""
        return slice(self.bounds[i], self.bounds[i + 1])

    @torch.no_grad()
    def after(self, riders: Sequence[torch.Tensor] = ()) -> float | None:
        """Files a ParameterStep with each parameter. Returns the cosine of the whole update with the negative gradient, at step 0.

        `riders` come to the host in the same transfer, and lie in `brought`.
        """
        if not self.watched:
            return None
        now = [w.sampled() for w in self.watched]
        sizes = [x.numel() for x in now]
        suspects = [i for i, w in enumerate(self.watched) if self.rows and w.suspicious and w.tensor.dim() >= 2]
        rows = EqualRows((self.watched[i].tensor, self.gradients[i]) for i in suspects if not self._is_sharded(i))
        moved, flags, self.brought = in_groups([joined(now), rows.flags, riders])
        found = iter(rows.read(flags))
        alike = {i: self._rows_of_shards(i) if self._is_sharded(i) else next(found) for i in suspects}
        change = _as_array(moved) - self.before
        lengths, base, still, pushed = self._summed(change, sizes)
        for i, w in enumerate(self.watched):
            ratio = (lengths[i] / base[i]) ** 0.5 if base[i] > 0 and math.isfinite(lengths[i]) and w.tensor.requires_grad else None
            w.steps.append(self._noun(i, w, ratio, still[i] / pushed[i] if pushed[i] else None, alike.get(i)))
        return self._cosine(change, sizes)

    def _is_sharded(self, i: int) -> bool:
        return several() and multiplicity(self.watched[i].tensor, 1) is not None

    def _rows_of_shards(self, i: int) -> tuple[float, bool]:
        """For this, one parameter at a time is put together, on all ranks."""
        tensor = self.watched[i].tensor
        rows = EqualRows([(whole(tensor), whole(tensor.grad) if tensor.grad is not None else None)])
        return rows.read(rows.flags)[0]

    def _summed(self, change: Numbers, sizes: Sequence[int]) -> list[list[float]]:
        """For each parameter: squares of its change and of what it was; how many entries had a gradient but stayed; how many had one."""
        scales = [_count(w.tensor) / max(1, size) if several() else 1 for w, size in zip(self.watched, sizes, strict=True)]
        counts = [self._unchanged(i, change) for i in range(len(sizes))]
        own = [_sums(np.square(change), sizes, scales), _sums(np.square(self.before), sizes, scales), *map(list, zip(*counts, strict=True))]
        return self._over_all_shards(own)

    def _over_all_shards(self, own: list[list[float]]) -> list[list[float]]:
        """Sums of quantities for each parameter."""
        said = everyone(own)
        for i in [i for i in range(len(self.watched)) if self._is_sharded(i)]:
            for quantity, values in enumerate(own):
                values[i] = math.fsum(s[quantity][i] for s in said)
        return own

    def _unchanged(self, i: int, change: Numbers) -> tuple[float, float]:
        pushed = self.pushed.get(i)
        return (0.0, 0.0) if pushed is None else (float((change[self._part(i)][pushed] == 0).sum()), float(pushed.sum()))

    def _cosine(self, change: Numbers, sizes: Sequence[int]) -> float | None:
        if self.direction is None:
            return None
        counts = [_count(w.tensor) for w in self.watched]
        known = [g is not None and g.numel() == count for g, count in zip(self.gradients, counts, strict=True)]
        ranks = len(everyone(0))
        shares = [1 / (multiplicity(w.tensor, ranks) or ranks) for w in self.watched]  # as many ranks hold each entry
        weights = np.repeat([k * c / max(1, n) * s for k, c, n, s in zip(known, counts, sizes, shares, strict=True)], sizes)
        pairs = (change, self.direction), (change, change), (self.direction, self.direction)
        said = everyone([float(np.sum(weights * a * b)) for a, b in pairs])
        product, moved, slope = (math.fsum(each) for each in zip(*said, strict=True))
        product, scale = -product, moved**0.5 * slope**0.5
        return product / scale if scale > 0 and math.isfinite(scale) else None

    def _noun(self, i: int, w: Watched, ratio: float | None, unchanged: float | None, alike: tuple[float, bool] | None) -> ParameterStep:
        norm = self.gradient_norms[i]
        if norm is not None:
            w.used = True
        duplicates, constant = alike if alike is not None else (None, False)
        if alike is not None:
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
            self.along[i] if self.along and norm is not None else None,
        )


def _extremes(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Least and largest of each, [tensors] both. One pass: torch's infinity norm is ten times as slow."""
    places, pairs = list[int](), list[tuple[torch.Tensor, ...]]()
    for members, block in blocks(tensors):
        places += members
        found = ends(block.reshape(len(members), -1), 1) if len(members) > 1 else ends(block)
        pairs.append(tuple(end.float().reshape(-1) for end in found))
    devices, order = {low.device for low, _ in pairs}, torch.tensor(places, device="cpu").argsort()
    sides = [torch.cat([e.cpu() if len(devices) > 1 else e for e in side]) for side in zip(*pairs, strict=True)]
    return [side[order.to(side.device)] for side in sides]


def _sums(values: Numbers, sizes: Sequence[int], scales: Sequence[float]) -> list[float]:
    """Of parts that lie one after the other, some of them empty."""
    filled = [i for i, size in enumerate(sizes) if size]
    found = np.zeros(len(sizes))
    if filled:
        found[filled] = np.add.reduceat(values, np.cumsum([0, *sizes[:-1]])[filled])
    return [float(x) for x in found * np.asarray(scales)]


def _count(tensor: torch.Tensor) -> int:
    """Real numbers of it that lie in this process."""
    tensor = local(tensor)
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def sampled_entries(tensor: torch.Tensor) -> torch.Tensor:
    """An even sample of the entries [blocks, BLOCK], or all of them: a view where possible."""
    values = local(tensor.detach())
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    flat = values.reshape(-1)
    if len(flat) <= SAMPLE:
        return flat
    blocks = flat[: len(flat) // BLOCK * BLOCK].view(-1, BLOCK)
    return blocks[:: spread(len(blocks), SAMPLE // BLOCK)]


def joined(samples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """One after the other, copied: [entries] of each device."""
    dtypes = {t.dtype for t in samples}
    common = next(iter(dtypes)) if len(dtypes) == 1 else torch.float64 if torch.float64 in dtypes else torch.float32
    alike = itertools.groupby(samples, key=lambda t: (t.device, t.dim()))
    return [torch.cat([t if t.dtype is common else t.to(common) for t in group]).reshape(-1) for _, group in alike]


def _as_array(parts: Sequence[torch.Tensor]) -> Numbers:
    return (torch.cat(list(parts)) if len(parts) != 1 else parts[0]).to(torch.float64).numpy() if parts else np.empty(0)
