"""Padding: sequences of a batch as the model gets them, and cut to their own length, must give the same output."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from gradcheck.instrument.activation_recorder import caller
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.dependence import evaluating
from gradcheck.measure.checks.reading import Reading
from gradcheck.measure.checks.sample_axis import Inputs, inputs_of
from gradcheck.measure.checks.sequence import Opening, opening, site_of
from gradcheck.types.location import Location
from gradcheck.types.sequence import Padding
from gradcheck.workload.device import wide
from gradcheck.workload.rng import Dice
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.step import first_tensor
from gradcheck.workload.training_copy import TrainingCopy

SEQUENCES = 4  # that are compared
SHORTEST = 2  # real places of a sequence that is compared
BATCHES = 4  # whose length is looked at
ROUNDING = 1e-5  # of the output: changes that float32 explains
LOOKED_INTO = 1e-2  # of the spread: changes whose origin is looked for
IGNORED = -100
_COMPARISONS = frozenset("eq ne lt le gt ge invert logical_not bitwise_not bool".split())
Told = Literal["mask", "lengths", "index", "targets"]


def padding(context: CheckContext) -> Padding | None:
    """None if nothing indicates padding at either end of the sequences. Raises Unmeasured when sequences cannot be cut."""
    copy = context.sound()
    with evaluating(copy), torch.no_grad():
        inputs = inputs_of(copy, context.workload.batches[0], collated=context.workload.collated)
        found = _padded(copy, inputs, context) if inputs is not None else None
        if inputs is None or found is None:
            return None
        case = _Case(context, copy, inputs, found)
        return case.before(found.left) if found.left is not None else case.result()


@dataclass(frozen=True)
class _Padded:
    """`lengths[i]` of `length` places of sequence i are real; the rest follow them."""

    told: Told
    lengths: list[int]
    length: int
    left: torch.Tensor | None = None  # [sequences, places] bool: what is real, where padding comes first


def _padded(copy: TrainingCopy, inputs: Inputs, context: CheckContext) -> _Padded | None:
    """What the arguments, or the embedding that reads them, say about padding."""
    held = [(x, a) for x, a in zip(inputs.leaves, inputs.axes, strict=True) if isinstance(x, torch.Tensor) and a is not None]
    tensors = [x.movedim(a, 0) for x, a in held]
    sequences = [x for x in tensors if x.dim() == (3 if x.is_floating_point() else 2) and x.dtype != torch.bool]
    if not sequences or sequences[0].shape[1] == inputs.rows:
        return None
    first = sequences[0]
    length = first.shape[1]
    by_index, others = _index(copy, inputs, first, context), [x for x in tensors if x is not first]
    for told, mask in _told_before(others, first, by_index, context) if not first.is_floating_point() else ():
        if bool((mask == 0).any()) and len(first[~mask].unique()) == 1 and int(mask.sum(1).min()) >= SHORTEST:
            return _Padded(told, mask.sum(1).tolist(), length, mask)
    ending = by_index if by_index is not None and _at_the_end(by_index) else None
    for told, mask in _told(others, first.shape[0], length, ending):
        return _Padded(told, mask.sum(1).tolist(), length)
    return None


def _told_before(
    others: list[torch.Tensor], tokens: torch.Tensor, by_index: torch.Tensor | None, context: CheckContext
) -> Iterator[tuple[Told, torch.Tensor]]:
    """[sequences, places] bool: which places are real, where padding comes before them."""
    for x in others:
        if x.shape == tokens.shape and bool(((x == 0) | (x == 1)).all()):
            yield from (("mask", mask) for mask in ((x, ~x) if x.dtype == torch.bool else (x == 1,)) if _at_the_start(mask))
    if by_index is not None and _at_the_start(by_index):
        yield "index", by_index
    first = tokens[tokens[:, 0] == tokens[:, 1], 0]
    real = tokens != first.mode().values if len(first) else None
    if real is not None and _at_the_start(real) and bool((real.sum(1) != real.sum(1)[0]).any()):
        yield from (("lengths", real) for x in others if torch.equal(x.cpu(), real.sum(1).cpu()))
        same = (t for t in context.targets[:1] if t.shape == tokens.shape)
        yield from (("targets", real) for t in same if bool((t[~real.to(t.device)] == IGNORED).all()))


def _told(others: list[torch.Tensor], rows: int, length: int, by_index: torch.Tensor | None) -> Iterator[tuple[Told, torch.Tensor]]:
    """[sequences, places] bool: which places are real."""
    for x in others:
        if x.shape == (rows, length) and bool(((x == 0) | (x == 1)).all()):
            for mask in (x == 1, ~x) if x.dtype == torch.bool else (x == 1,):
                if _at_the_end(mask) and (by_index is None or torch.equal(mask, by_index)):
                    yield "mask", mask
    places = torch.arange(length, device="cpu")
    for x in others:
        if x.shape == (rows,) and not x.is_floating_point() and x.dtype != torch.bool:
            mask = places[None] < x.cpu()[:, None]
            fits = 1 <= int(x.min()) < length == int(x.max())
            if fits if by_index is None else torch.equal(mask, by_index.cpu()):
                yield "lengths", mask
    if by_index is not None:
        yield "index", by_index


def _index(copy: TrainingCopy, inputs: Inputs, tokens: torch.Tensor, context: CheckContext) -> torch.Tensor | None:
    """Real places by the padding index of the embedding that reads the tokens."""
    if tokens.is_floating_point():
        return None
    seen = Reading({id(m): name for name, m in copy.model.named_modules()})
    Dice(context.seed).throw()
    with seen:
        inputs.run(copy.model)
    shapes = (tokens.shape, tokens.T.shape)
    index = next((r.padding for r in seen.reads if r.padding is not None and r.tokens.shape in shapes), None)
    return tokens != index if index is not None else None


def _at_the_start(real: torch.Tensor) -> bool:
    return _at_the_end(real.flip(1))


def _at_the_end(real: torch.Tensor) -> bool:
    """Whether in every sequence padding comes after what is real, and there is some padding."""
    real = real.int()
    return bool((real[:, 1:] <= real[:, :-1]).all()) and bool((real[:, 0] == 1).all()) and bool((real == 0).any())


def _sequences(x: Any, axis: int | None, length: int) -> bool:
    """Whether a leaf holds what the places of the sequences contain, and is no mask of them."""
    return isinstance(x, torch.Tensor) and axis is not None and _holds(x.movedim(axis, 0), length)


def _holds(x: torch.Tensor, length: int) -> bool:
    fits = x.dim() == (3 if x.is_floating_point() else 2) and x.dtype != torch.bool and x.shape[1] == length
    return fits and not bool(((x == 0) | (x == 1)).all())


class _Masks(TorchFunctionMode):
    """Sees where truth values of the places are made last, before they are used: by a comparison, its inversion or a cast."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.last: Location | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **kwargs or {})
        compares = getattr(function, "__name__", "").strip("_") in _COMPARISONS
        if compares and isinstance(output, torch.Tensor) and self.length in output.shape:
            self.last = location_of_frame(caller()) or self.last
        return output


class _Case:
    def __init__(self, context: CheckContext, copy: TrainingCopy, inputs: Inputs, padded: _Padded) -> None:
        self.context, self.copy, self.inputs, self.padded, self.dice = context, copy, inputs, padded, Dice(context.seed)

    def result(self) -> Padding | None:
        chosen = self._chosen()
        if not chosen:
            return None
        whole = self._output(self.inputs)
        if whole.dim() < 2:
            raise Unmeasured("the output has no entry for each sequence")
        try:
            pairs = [self._pair(i) for i in chosen]
        except Unmeasured:
            raise
        except Exception as error:
            raise Unmeasured("the model does not run on a single sequence, or on a shorter one") from error
        pooled = pairs[0][0].shape == pairs[0][1].shape
        if pooled and self._blind(chosen):
            return self._inverted(chosen)
        if any(not bool(torch.isfinite(cut).all()) for _, cut in pairs):
            raise Unmeasured("the output of a sequence without padding is not finite")
        changes = [wide(_cut(a, b.shape) - b) for a, b in pairs]
        change = float(torch.cat([c.reshape(-1) for c in changes]).square().mean().sqrt())
        size = float(wide(torch.cat([b.reshape(-1) for _, b in pairs])).square().mean().sqrt())
        rows = wide(whole).reshape(-1, whole.shape[-1])
        spread = float((rows - rows.mean(0)).square().mean().sqrt())
        found = self._noun(len(chosen), change if change > ROUNDING * size else 0.0, spread, pooled)
        return self._located(found, chosen[0]) if found.effect > LOOKED_INTO else found

    def _noun(self, sequences: int, change: float, spread: float, pooled: bool, **more: Any) -> Padding:
        lengths = self.padded.lengths
        share = 1 - sum(lengths) / (len(lengths) * self.padded.length)
        return Padding(self.padded.told, share, self._varies(), sequences, change, spread, pooled, **more)

    def _blind(self, chosen: list[int]) -> bool:
        """Whether no output changes when the real places of a sequence get those of another one, and some does when the padding does."""
        lengths, length = self.padded.lengths, self.padded.length
        donor = max(range(len(lengths)), key=lambda i: lengths[i])
        effects = []
        for first, last in ((0, 1), (1, 2)):
            changes = []
            for row in (i for i in chosen if i != donor):
                ends = (0, lengths[row], length)
                taken = self.inputs.taken([row, row])
                other = self.inputs.taken([donor, donor])
                leaves = list(taken.leaves)
                for k, (x, by, axis) in enumerate(zip(taken.leaves, other.leaves, taken.axes, strict=True)):
                    if _sequences(x, axis, length):
                        x, by = x.movedim(axis, 0).clone(), by.movedim(axis, 0)
                        places = torch.arange(ends[last] - ends[first], device=x.device) % lengths[donor]  # those that are real there
                        x[:, ends[first] : ends[last]] = by[:, places]
                        leaves[k] = x.movedim(0, axis)
                a, b = self._output(taken), self._output(replace(taken, leaves=tuple(leaves)))
                change = float(wide(a - b).abs().max() / wide(a).abs().max().clamp_min(1e-30))
                changes.append(math.inf if math.isnan(change) else change)
            effects.append(max(changes, default=0.0))
        return effects[0] <= ROUNDING < effects[1]

    def _inverted(self, chosen: list[int]) -> Padding:
        with _Masks(self.padded.length) as masks:
            self._output(self._alone(chosen[0], self.padded.length))
        found = self._noun(len(chosen), 1.0, 1.0, True, site=masks.last, inverted=True)
        located = self._located(found, chosen[0])
        return replace(located, site=masks.last or located.site)

    def before(self, real: torch.Tensor) -> Padding | None:
        """Other tokens in the place of the padding, where embeddings read it: what is masked does not show."""
        names = {id(m): name for name, m in self.copy.model.named_modules()}
        seen = Reading(names)
        whole = self._read(seen)
        reads = [r for r in seen.reads if r.tokens.shape == real.shape and not r.tokens.is_floating_point()]
        if not reads or whole.dim() < 2 or whole.shape[0] != len(real):
            return None
        instead = {}
        for read in reads[:1]:
            kinds, index = torch.unique(read.tokens, return_inverse=True)
            other = torch.where(real.to(index.device), read.tokens, kinds[(index + 1) % len(kinds)])
            instead = read.instead(other)
        places = whole.dim() > 2 and whole.shape[1] == real.shape[1]
        shown = whole[real] if places else whole
        change = wide((self._read(Reading(names, instead))[real] if places else self._read(Reading(names, instead))) - shown)
        rows = wide(shown).reshape(-1, shown.shape[-1])
        size, moved = float(rows.square().mean().sqrt()), float(torch.nan_to_num(change).square().mean().sqrt())
        lengths, length = self.padded.lengths, self.padded.length
        spread = float((rows - rows.mean(0)).square().mean().sqrt())
        found = self._noun(len(lengths), moved if moved > ROUNDING * size else 0.0, spread, not places, before=True)
        if found.effect <= LOOKED_INTO:
            return found

        def step(changed: bool) -> Any:
            return self._read(Reading(names, instead if changed else None))

        return self._placed(found, opening(step, names, (length, length), -min(lengths), pooling=not places))

    def _read(self, seen: Reading) -> torch.Tensor:
        with seen:
            return self._output(self.inputs)

    def _chosen(self) -> list[int]:
        """Some sequences of different lengths, the shortest first."""
        lengths = self.padded.lengths
        order = sorted((i for i, n in enumerate(lengths) if SHORTEST <= n < self.padded.length), key=lambda i: lengths[i])
        different = list({lengths[i]: i for i in reversed(order)}.values())[::-1]
        return [different[len(different) * k // SEQUENCES] for k in range(SEQUENCES)] if len(different) > SEQUENCES else different

    def _pair(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        full = self._output(self._alone(row, self.padded.length))
        cut = self._output(self._alone(row, self.padded.lengths[row]))
        fits = full.dim() == cut.dim() and all(
            a == b or (a, b) == (self.padded.length, self.padded.lengths[row]) for a, b in zip(full.shape, cut.shape, strict=True)
        )
        if not fits or not bool(torch.isfinite(full).all()):
            raise Unmeasured("the output has no entry for each sequence, or is not finite")
        return full, cut

    def _alone(self, row: int, places: int) -> Inputs:
        """A sequence by itself, with so many of its places; twice, since not every model takes a batch of one."""
        taken = self.inputs.taken([row, row])
        leaves = [_shortened(x, self.padded.length, places, axis) for x, axis in zip(taken.leaves, taken.axes, strict=True)]
        return replace(taken, leaves=tuple(leaves))

    def _output(self, inputs: Inputs) -> torch.Tensor:
        self.dice.throw()
        output = first_tensor(inputs.run(self.copy.model)).detach()
        return output[:, None] if output.dim() == 1 and len(output) == inputs.rows else output  # one number for each sequence

    def _varies(self) -> bool | None:
        found = []
        for batch in self.context.workload.batches[:BATCHES]:
            inputs = inputs_of(self.copy, batch, collated=self.context.workload.collated)
            found.append(inputs.leaves[inputs.first].shape if inputs is not None else None)
        return len({s[1 - (self.inputs.axes[self.inputs.first] or 0)] for s in found if s}) > 1 if len(found) > 1 else None

    def _located(self, found: Padding, row: int) -> Padding:
        names = {id(m): name for name, m in self.copy.model.named_modules()}
        places = self.padded.lengths[row]

        def step(changed: bool) -> Any:
            return self._output(self._alone(row, places if changed else self.padded.length))

        return self._placed(found, opening(step, names, (self.padded.length, places), places, pooling=True))

    def _placed(self, found: Padding, place: Opening | None) -> Padding:
        if place is None:
            return found
        return replace(found, at=place.layer, operation=place.operation, site=site_of(place, self.copy.model, self.context.sites))


def _shortened(leaf: Any, length: int, places: int, axis: int | None) -> Any:
    """Without the last places, along every axis that has as many as the sequences, the samples' own excepted."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    for k, size in enumerate(leaf.shape):
        if size == length and k != axis:
            leaf = leaf.narrow(k, 0, places)
    return leaf


def _cut(full: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    for k, size in enumerate(shape):
        full = full.narrow(k, 0, size)
    return full
