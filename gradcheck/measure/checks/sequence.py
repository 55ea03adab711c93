"""Sequences: whether the target of a place is the next token, whether places see later ones, and how many targets count. Tokens are changed
where an embedding reads them, so that masks and lengths that a script derives from them stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from gradcheck.instrument.activation_recorder import caller
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.dependence import evaluating
from gradcheck.measure.checks.reading import FEWEST, IGNORED, Alignment, Asked, Reading, align
from gradcheck.measure.checks.sample_axis import ROUNDING, Remembering, Seen
from gradcheck.types.location import Location
from gradcheck.types.sequence import SequenceFacts, Supervision, TokenStream
from gradcheck.workload.device import wide
from gradcheck.workload.rng import Dice
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in
from gradcheck.workload.training_copy import TrainingCopy

State = Literal["same", "own", "seen", "without places"]
# In "own" what lies up to the place is as it was, in "seen" it has changed along every axis that may hold the places.


@dataclass(frozen=True)
class Opening:
    """Where later places are first seen."""

    layer: str
    operation: str
    site: Location | None
    pooled: bool  # through something without places: a summary of the sequence


@dataclass(frozen=True)
class _Print:
    """Sums that tell whether a tensor has changed: as a whole, and up to a place, for each axis that may hold the places."""

    shape: tuple[int, ...]
    whole: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    longer: bool  # some axis holds the places and more: padded at its ends, or beside other tokens


class _Comparing(Seen):
    """Follows what has changed from operation to operation. `pooling`: what has no places has to be the same, too."""

    def __init__(
        self, names: Mapping[int, str], printed: Callable[[torch.Tensor], _Print], before: list[tuple[str, list[_Print]]], pooling: bool
    ) -> None:
        super().__init__(names)
        self.printed, self.before, self.index, self.pooling = printed, before, 0, pooling
        self.changed: dict[int, tuple[torch.Tensor, Opening]] = {}  # results, and where their change comes from
        self.found: Opening | None = None  # of the last one, which is on the way to the output
        self.lost = False  # the passes took different paths

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        expected = self.before[self.index] if self.index < len(self.before) else ("", [])
        self.index += 1
        now = [self.printed(t.detach()) for t in tensors_in(output)] if not self.lost else []
        self.lost = self.lost or expected[0] != name or [len(p.shape) for p in expected[1]] != [len(p.shape) for p in now]
        if self.lost:
            return
        origins = [self.changed[id(t)][1] for t in tensors_in(given) if id(t) in self.changed]
        origin = min(origins, key=lambda o: o.pooled, default=None)
        most = max((t.numel() for t in tensors_in(given)), default=0)
        for tensor, old, new in zip(tensors_in(output), expected[1], now, strict=True):
            state = _state(old, new)
            padded = state == "without places" and new.longer and tensor.numel() >= most
            if state in ("same", "own") or (origin is None and padded):
                continue
            pooled = state == "without places"
            blamed = origin or Opening(self.module_name, name, location_of_frame(caller()), pooled)
            self.changed[id(tensor)] = (tensor, blamed)
            if self.pooling or not pooled:
                self.found = blamed


def _print(x: torch.Tensor, length: int, alike: int) -> _Print:
    """Of a tensor with `length` places, of which the first `alike` are the same in both passes, or, where negative, the last ones."""
    upto = abs(alike)
    start = length - upto if alike < 0 else 0
    if x.is_complex():
        x = torch.view_as_real(x)
    with torch._C.DisableTorchFunction():
        x = torch.nan_to_num(wide(x), posinf=0.0, neginf=0.0)
        axes = [k for k, size in enumerate(x.shape) if size == length]
        parts = [_sums(x.narrow(k, start, upto).movedim(k, 0)) for k in axes]
        if len(axes) > 1:  # places against places: what is made of those that came later decides
            block = x
            for k in axes:
                block = block.narrow(k, start, upto)
            parts.append(_sums(block.movedim(axes[0], 0)))
        if not axes and x.dim() and x.shape[0] and x.shape[0] % length == 0:
            inner = x.shape[0] // length
            parts.append(_sums(x.reshape(inner, length, -1)[:, start : start + upto].transpose(0, 1)))
            parts.append(_sums(x.reshape(length, inner, -1)[start : start + upto]))
        return _Print(tuple(x.shape), _sums(x.reshape(1, -1)), tuple(parts), any(length < s <= 2 * length for s in x.shape))


def _sums(x: torch.Tensor) -> torch.Tensor:
    """The sum of each row, and that of the magnitudes."""
    flat = x.reshape(len(x), -1)
    return torch.stack((flat.sum(1), flat.abs().sum(1)))


def _state(old: _Print, new: _Print) -> State:
    if _alike(old.whole, new.whole):
        return "same"
    if not old.parts or not new.parts:
        return "without places"
    pairs = ((a, b) for a in old.parts for b in new.parts if a.shape == b.shape)  # other axes may be as long by chance
    return "own" if any(_alike(a, b) for a, b in pairs) else "seen"


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a - b).abs() <= ROUNDING * a[1].abs().max().clamp_min(1e-30)).all())


def opening(
    step: Callable[[bool], Any], names: Mapping[int, str], lengths: tuple[int, int], alike: int, *, pooling: bool = False
) -> Opening | None:
    """The first operation whose result in the first `alike` places, the last ones where it is negative, depends on the others.

    `step(changed)` makes a pass; `lengths`: places in it as it is, and changed. With `pooling` results without places count as well.
    """
    remembering = Remembering(names, partial(_print, length=lengths[0], alike=alike))
    with remembering:
        step(False)
    comparing = _Comparing(names, partial(_print, length=lengths[1], alike=alike), remembering.results, pooling)
    with comparing:
        step(True)
    return comparing.found


def site_of(place: Opening, model: nn.Module, sites: Mapping[str, Location | None]) -> Location | None:
    """Where a module of torch is created, if that decides what its places see; otherwise the call, as for attention with its mask."""
    module = dict(model.named_modules()).get(place.layer)
    called = isinstance(module, (nn.MultiheadAttention, nn.Transformer))
    built = module is not None and type(module).__module__.startswith("torch.nn.modules") and not called
    return (sites.get(place.layer) if built else None) or place.site


PLACES = 3  # after which tokens are changed, one after another
BATCHES = 4  # whose targets are looked at, where some do not count
TRACE = 1e-4  # of the effect on later places: leaks from which their origin is looked for


def sequence(context: CheckContext) -> SequenceFacts:
    """Raises Unmeasured if two passes over the same tokens differ."""
    copy = context.sound()
    with evaluating(copy), torch.no_grad():
        return _Case(context, copy).facts()


@dataclass(frozen=True)
class _Pass:
    batch: Any
    seen: Reading
    finite: bool  # the loss of the step


class _Case:
    def __init__(self, context: CheckContext, copy: TrainingCopy) -> None:
        self.context, self.copy, self.dice = context, copy, Dice(context.seed)
        self.names = {id(m): name for name, m in copy.model.named_modules()}

    def facts(self) -> SequenceFacts:
        batches = self.context.workload.batches
        try:
            passes = [self._pass(batches[0])]
        except Exception:  # detectors return boxes instead of a loss in evaluation mode
            raise Unmeasured("the training step does not run in evaluation mode") from None
        if not passes[0].seen.answers:
            if passes[0].seen.unseen or self._is_asked_elsewhere(passes[0].seen):
                raise Unmeasured("the loss over the tokens is computed where its scores and targets are not seen")
            return SequenceFacts()
        passes += [self._pass(batches[i]) for i in self._others(passes[0].seen.answers)]
        passes = [p for p in passes if len(p.seen.answers) == len(passes[0].seen.answers)]
        telling = max(passes, key=lambda p: sum(int((a.target != a.ignored).sum()) for a in p.seen.answers))
        aligned = {(i, j): a for i, j, a in self._alignments(telling.seen)}
        losses = [j for j, asked in enumerate(passes[0].seen.answers) if not asked.picked]
        supervision = [self._supervision(j, passes, aligned) for j in losses]
        streams = [self._stream(telling, i, j, a) for (i, j), a in aligned.items() if a.samples > 1 or self._is_sequence(telling, i, j, a)]
        return SequenceFacts(tuple(streams), tuple(supervision))

    def _is_asked_elsewhere(self, seen: Reading) -> bool:
        """Whether targets are tokens that the model reads, though no loss over classes was seen."""
        picked = [t.argmax(-1) for t in tensors_in(self.context.workload.batches[0]) if _is_one_hot(t)]
        targets = [t for t in (*self.context.targets[:1], *seen.chosen, *picked) if t.numel() >= FEWEST and not t.is_floating_point()]
        return any(align(r.tokens, t, IGNORED) is not None for r in seen.sequences for t in targets)

    def _pass(self, batch: Any, instead: Mapping[int, torch.Tensor] | None = None) -> _Pass:
        self.dice.throw()
        seen = Reading(self.names, instead)
        with seen:
            loss = self.copy.loss(batch)
        return _Pass(batch, seen, bool(torch.isfinite(loss)))

    def _others(self, asked: Sequence[Asked]) -> list[int]:
        """More batches whose targets are looked at: if some do not count, or if the probe met a loss that is not a number."""
        count, probe = len(self.context.workload.batches), self.context.probe
        broke = [(len(probe.losses) - 1) % count] if probe.ended == "non-finite" else []
        empty = [i for i, t in enumerate(self.context.targets) if t.numel() and any(bool((t == a.ignored).all()) for a in asked)]
        few = range(1, count) if any(bool((a.target == a.ignored).any()) for a in asked) else ()
        return [i for i in dict.fromkeys((*broke, *empty, *few)) if i][: BATCHES - 1]

    @staticmethod
    def _alignments(seen: Reading) -> list[tuple[int, int, Alignment]]:
        found = ((i, j, align(r.tokens, a.target, a.ignored)) for j, a in enumerate(seen.answers) for i, r in enumerate(seen.sequences))
        return [(i, j, a) for i, j, a in found if a is not None]

    def _supervision(self, loss: int, passes: Sequence[_Pass], aligned: Mapping[tuple[int, int], Alignment]) -> Supervision:
        asked = [p.seen.answers[loss] for p in passes]
        empty = [not bool((a.target != a.ignored).any()) for a in asked]
        layout = next((a for (_, j), a in aligned.items() if j == loss and a.ahead == 1), None)
        rows = [layout.rows((a.target != a.ignored).reshape(-1)) for a in asked if layout and a.target.numel() % layout.samples == 0]
        return Supervision(
            asked[0].function,
            len(asked),
            sum(empty),
            asked[0].ignored,
            all(p.finite for p, nothing in zip(passes, empty, strict=True) if nothing),
            sum(len(r) for r in rows),
            sum(int((~r.any(1)).sum()) for r in rows),
            asked[0].target.numel(),
            asked[0].site,
        )

    # ---------------------------------------------------------------------- effects

    def _stream(self, start: _Pass, read: int, loss: int, a: Alignment) -> TokenStream:
        tokens, asked = start.seen.sequences[read], start.seen.answers[loss]
        a = _without_padding(a, a.tokens(tokens.tokens))
        found = TokenStream(tokens.layer, loss, a.ahead, a.agreement, a.places, loss_site=asked.site, read_site=tokens.site)
        base = wide(a.rows(asked.logits))
        size = float(base[torch.isfinite(base)].square().mean().sqrt())
        effects = [self._effect(start, read, loss, a, base, t) for t in _places(a.supervised)]
        measured = [e for e in effects if e is not None]
        if not measured:
            return found
        later, following, before = (max(e[k] for e in measured) for k in range(3))
        found = replace(found, later=later, next=following, before=before if before > ROUNDING * size else 0.0)
        if not found.leak or found.leak < TRACE:
            return found
        again = self._pass(start.batch)
        if not torch.equal(again.seen.answers[loss].logits, asked.logits):
            raise Unmeasured("the model gave different outputs for the same tokens and the same random numbers")
        found = self._located(found, start, read, a)
        backwards = found.pooled and not self._is_sequence(start, read, loss, a)  # a summary would tell later places of earlier ones
        return replace(found, pooled=False) if backwards else found

    def _is_sequence(self, start: _Pass, read: int, loss: int, a: Alignment) -> bool:
        """Whether earlier places affect later ones: if not, it is one label per sample, as a generator is given."""
        tokens, places = start.seen.sequences[read], _places(a.supervised)
        other = _swapped(start, read, a, places[-1], first=True) if places else None
        if other is None:
            return True
        asked, base = self._pass(start.batch, tokens.instead(other)).seen.answers, start.seen.answers[loss].logits
        if len(asked) <= loss or asked[loss].logits.shape != base.shape:
            return True
        later = torch.nan_to_num(wide(a.rows(asked[loss].logits)) - wide(a.rows(base)))[:, places[-1] + 1 :]
        return float(later.abs().max()) > ROUNDING * float(wide(base).abs().max())

    def _effect(self, start: _Pass, read: int, loss: int, a: Alignment, base: torch.Tensor, t: int) -> tuple[float, float, float] | None:
        """Of other tokens after place t: on the places after it, on the next one, and the largest on one that counts up to it."""
        tokens, other = start.seen.sequences[read], _swapped(start, read, a, t)
        if other is None:
            return None
        asked = self._pass(start.batch, tokens.instead(other)).seen.answers
        if len(asked) <= loss or asked[loss].logits.shape != start.seen.answers[loss].logits.shape:
            return None
        change = torch.nan_to_num(wide(a.rows(asked[loss].logits)) - base).square().mean(-1)
        upto = change[:, : t + 1][a.supervised[:, : t + 1]]
        later = float(change[:, t + 1 :].mean().sqrt())
        return later, float(change[:, t + 1].mean().sqrt()), float(upto.max().sqrt())

    def _located(self, found: TokenStream, start: _Pass, read: int, a: Alignment) -> TokenStream:
        tokens = start.seen.sequences[read]
        t = _places(a.supervised)[-1]
        other = _swapped(start, read, a, t)
        if other is None or tokens.one is not None:  # one place at a time: no operation has an axis of places
            return found

        def step(changed: bool) -> None:
            self._pass(start.batch, tokens.instead(other) if changed else None)

        length = a.tokens(tokens.tokens).shape[1]
        place = opening(step, self.names, (length, length), t + 1)
        if place is None:
            return found
        site = site_of(place, self.copy.model, self.context.sites)
        return replace(found, at=place.layer, operation=place.operation, site=site, pooled=place.pooled)


def _is_one_hot(x: torch.Tensor) -> bool:
    return x.dim() > 1 and x.shape[-1] > 1 and bool(((x == 0) | (x == 1)).all()) and bool((x.sum(-1) == 1).all())


def _without_padding(a: Alignment, tokens: torch.Tensor) -> Alignment:
    """Without the padding before a sequence: there everything is masked, so attention looks at everything."""
    first = tokens[:, :1]
    runs = (tokens == first).long().cumprod(1).sum(1)
    padded = first[runs > 1, 0]
    if not len(padded):
        return a
    left = (tokens == padded.mode().values).long().cumprod(1).bool()[:, : a.supervised.shape[1]]
    kept = a.supervised & ~left if left.shape == a.supervised.shape else a.supervised
    return replace(a, supervised=kept) if bool(kept.any()) else a


def _places(supervised: torch.Tensor) -> list[int]:
    """Some places up to which something counts, and after which there are more."""
    length = supervised.shape[1]
    possible = [t for t in range(length - 1) if bool(supervised[:, : t + 1].any())]
    return sorted({possible[len(possible) * k // (PLACES + 1)] for k in range(1, PLACES + 1)}) if possible else []


def _swapped(start: _Pass, read: int, a: Alignment, t: int, *, first: bool = False) -> torch.Tensor | None:
    """The tokens, with others after place t, or up to it: each is replaced by the next one that occurs. None when there is one kind."""
    read_tokens = start.seen.sequences[read].tokens
    kinds, index = torch.unique(read_tokens, return_inverse=True)
    if len(kinds) < 2:
        return None
    other = kinds[(index + 1) % len(kinds)]
    tokens, other = a.tokens(read_tokens), a.tokens(other)
    if first:
        tokens, other = other, tokens
    return a.as_read(torch.cat((tokens[:, : t + 1], other[:, t + 1 :]), 1), read_tokens)
