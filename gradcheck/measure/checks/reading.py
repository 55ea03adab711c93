"""One training step seen as reading and answering: the tokens that embeddings read, and the classes that losses ask for, some places
ahead.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch.nn import functional as F

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.instrument.patches import seen_by
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in

FURTHEST = 4  # places ahead that are looked for
AHEADS = (1, 0, *range(2, FURTHEST + 1))  # the intended one first: periodic sequences agree with several
FEWEST = 16  # places at which a number of places ahead must differ from its neighbour
TELLING = 0.05  # of the supervised places: the least share of those
LIKELY = 0.9  # agreement from which two sequences are said to be one and the same
SHORTEST = 3  # places in a sequence


@dataclass(frozen=True)
class Alignment:
    """`turned`: tokens have places before samples. `time_first`: so have the rows of the loss."""

    ahead: int
    agreement: float
    places: int  # supervised places that were compared
    samples: int
    turned: bool
    time_first: bool
    supervised: torch.Tensor  # [samples, places of the loss] bool

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """As [samples, places]."""
        x = x.reshape(1, -1) if x.dim() == 1 else x
        return x.T if self.turned else x

    def as_read(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """[samples, places] as the embedding takes them."""
        return (tokens.T if self.turned else tokens).reshape(like.shape)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Values of each row of the loss, as [samples, places, ...]."""
        return _rows(values, self.samples, self.time_first)


def _rows(values: torch.Tensor, samples: int, time_first: bool) -> torch.Tensor:
    rest = values.shape[1:]
    if time_first:
        return values.reshape(-1, samples, *rest).transpose(0, 1)
    return values.reshape(samples, -1, *rest)


def align(tokens: torch.Tensor, target: torch.Tensor, ignored: int) -> Alignment | None:
    """The layout in which the target agrees best with the tokens; None when it never does."""
    if tokens.is_floating_point() or tokens.dim() not in (1, 2) or not tokens.numel():
        return None
    found = list(_candidates(tokens, target.reshape(-1), ignored))
    return max(found, key=lambda a: (a.agreement, -AHEADS.index(a.ahead)), default=None)


def _candidates(tokens: torch.Tensor, target: torch.Tensor, ignored: int) -> Iterator[Alignment]:
    for turned in (False, True) if tokens.dim() == 2 else (False,):
        x = tokens.reshape(1, -1) if tokens.dim() == 1 else tokens.T if turned else tokens
        samples, length = x.shape
        places, rest = divmod(len(target), samples)
        if rest or not max(SHORTEST, length - FURTHEST) <= places <= length:
            continue
        for time_first in (False, True) if samples > 1 else (False,):
            y = _rows(target, samples, time_first)
            supervised = y != ignored
            for ahead in AHEADS:
                agreement, compared = _agreement(x, y, supervised, ahead)
                if agreement >= LIKELY:
                    yield Alignment(ahead, agreement, compared, samples, turned, time_first, supervised)


def _agreement(x: torch.Tensor, y: torch.Tensor, supervised: torch.Tensor, ahead: int) -> tuple[float, int]:
    """Share of the supervised places at which y[t] is x[t + ahead], and their number.

    0 if too few places would show that it is not one place more or less, as in constant sequences.
    """
    beside = ahead - 1 if ahead else 1
    length = min(y.shape[1], x.shape[1] - max(ahead, beside))
    if length < SHORTEST:
        return 0.0, 0
    other, y, counts = x[:, beside : beside + length], y[:, :length], supervised[:, :length]
    x = x[:, ahead : ahead + length]
    same, telling = (x == y)[counts], (x != other)[counts]
    clear = int(telling.sum())
    if clear < max(FEWEST, TELLING * same.numel()):
        return 0.0, 0
    return min(float(same.float().mean()), float(same[telling].float().mean())), same.numel()


LOSSES = frozenset((F.cross_entropy, F.nll_loss))
PICKS = frozenset((torch.gather, torch.Tensor.gather))  # that read the scores of given tokens: losses written by hand, rewards of policies
# Losses that take hidden states and the head's weight in place of logits.
FUSED = frozenset(f for f in (getattr(F, "linear_cross_entropy", None),) if f is not None)
# With targets that are rows of 0 and 1.
PRODUCTS = frozenset((torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__))
CHOOSES = frozenset((F.one_hot, torch.Tensor.__getitem__))  # losses written by hand pick the scores of their targets so
IGNORED = -100  # torch's own choice


@dataclass(frozen=True)
class Read:
    """A call of an embedding, or its calls for one place after another, side by side."""

    layer: str
    tokens: torch.Tensor
    padding: int | None
    site: Location | None
    calls: tuple[int, ...] = ()  # their numbers
    one: torch.Size | None = None  # the shape of the tokens of each, where there are several

    def instead(self, tokens: torch.Tensor) -> dict[int, torch.Tensor]:
        """Other tokens for each of the calls."""
        if self.one is None:
            return {self.calls[0]: tokens}
        return {call: column.reshape(self.one) for call, column in zip(self.calls, tokens.T, strict=True)}


def _joined(reads: Sequence[Read]) -> Read:
    first = reads[0]
    tokens = torch.stack([r.tokens.reshape(-1) for r in reads], 1)
    return replace(first, tokens=tokens, calls=tuple(c for r in reads for c in r.calls), one=first.tokens.shape)


@dataclass(frozen=True)
class Asked:
    """A call of a loss over classes, or a pick among them. Row i of `logits` is for entry i of `target`."""

    function: str
    logits: torch.Tensor
    target: torch.Tensor
    ignored: int
    site: Location | None
    picked: bool = False  # it is not known what becomes of it, and whether all of it counts


class Reading(ActivationRecorder):
    """Sees embeddings and losses over classes. `instead`: other tokens for some of the embedding's calls, by their number."""

    def __init__(self, names: Mapping[int, str], instead: Mapping[int, torch.Tensor] | None = None) -> None:
        super().__init__(names)
        self.instead = instead or {}
        self.reads: list[Read] = []
        self.asked: list[Asked] = []
        self.unseen = False  # a custom function takes indices, and what it makes of them is not known
        self.chosen: list[torch.Tensor] = []  # indices by which something is picked
        self._inside = 0  # of a custom function whose question is known

    def __enter__(self) -> Self:
        super().__enter__()
        self._custom_functions = seen_by(self._custom)
        self._custom_functions.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._custom_functions.__exit__(*error)
        super().__exit__(*error)

    def _module_call(self, *details: Any) -> None:
        """Modules are only tracked."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in FUSED and self.recording:
            ignored = kwargs.get("ignore_index")
            self._fuse(function.__name__, (*args, *kwargs.values()), IGNORED if ignored is None else ignored)
        if function in CHOOSES and self.recording:
            by = args if function is F.one_hot else args[1:]
            self.chosen += [t.detach() for t in tensors_in(by, 2) if t.dtype == torch.int64 and t.numel() >= FEWEST]
        if function is torch.Tensor.__getitem__ and self.recording and not self._inside:
            self._index(*args)
        if function in PRODUCTS and self.recording and not self._inside:
            self._weigh(function.__name__.strip("_"), *args[:2])
        known = function is F.embedding or function in LOSSES or function in PICKS
        if not known or not self.recording or self._inside:
            return function(*args, **kwargs)
        if function is F.embedding:
            tokens = args[0] if args else kwargs.pop("input")
            args = (self._read(tokens, args[1:], kwargs), *args[1:])
            return function(*args, **kwargs)
        if function in PICKS:
            self._pick(*args, **kwargs)
        else:
            self._ask(function.__name__, args, kwargs)
        return function(*args, **kwargs)

    def _fuse(self, function: str, given: Sequence[Any], ignored: int) -> bool:
        """Hidden states [..., D], the head's weight [classes, D] and classes [...] are a question over classes."""
        tensors = [t for t in given if isinstance(t, torch.Tensor)]
        target = next((t for t in tensors if t.dtype == torch.int64 and t.numel() >= SHORTEST), None)
        if target is None:
            return False
        for weight in (t for t in tensors if t.dim() == 2 and t.is_floating_point() and len(t) > int(target.max())):
            for hidden in (t for t in tensors if t is not weight and t.is_floating_point() and t.shape[-1:] == weight.shape[1:]):
                if hidden.numel() == target.numel() * weight.shape[1]:
                    with torch.no_grad(), torch._C.DisableTorchFunction():
                        logits = hidden.detach().reshape(-1, weight.shape[1]) @ weight.detach().to(hidden.dtype).T
                    self.asked.append(Asked(function, logits, target.detach(), ignored, location_of_frame(caller())))
                    return True
        return False

    def _custom(self, function: Any, whole: Any, args: Any, kwargs: Any) -> Any:
        """A call of a custom function."""
        given = (*args, *kwargs.values())
        indices = any(isinstance(t, torch.Tensor) and t.dtype == torch.int64 and t.numel() >= FEWEST for t in given)
        if not self.recording or not indices or self._inside:
            return whole(function, *args, **kwargs)
        ignored = next((x for x in given if isinstance(x, int) and x < 0), IGNORED)
        known = self._fuse(function.__name__, given, ignored)
        before = len(self.asked)
        self._inside += known
        try:
            return whole(function, *args, **kwargs)
        finally:
            self._inside -= known
            self.unseen = self.unseen or not (known or len(self.asked) > before)

    def _read(self, tokens: torch.Tensor, rest: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        padding = rest[1] if len(rest) > 1 else kwargs.get("padding_idx")
        number = len(self.reads)
        self.reads.append(Read(self.module_name, tokens.detach(), padding, location_of_frame(caller()), (number,)))
        return self.instead.get(number, tokens)

    @cached_property
    def sequences(self) -> list[Read]:
        """What was read, once the step is over: the calls of a decoder that takes one token at a time are one sequence."""
        groups: dict[Any, list[Read]] = {}
        for read in self.reads:
            single = read.tokens.dim() == 1 or (read.tokens.dim() == 2 and read.tokens.shape[1] == 1)
            groups.setdefault((read.layer, read.site, read.tokens.shape) if single else read.calls, []).append(read)
        return [r for reads in groups.values() for r in ([_joined(reads)] if len(reads) >= SHORTEST else reads)]

    @cached_property
    def answers(self) -> list[Asked]:
        """The questions, once the step is over: those that are asked chunk by chunk are one."""
        groups: dict[Any, list[Asked]] = {}
        for asked in self.asked:
            groups.setdefault((asked.function, asked.site, asked.ignored, asked.picked), []).append(asked)
        found = {id(group[0]): self._whole(group) for group in groups.values() if len(group) > 1}
        joined = {id(a) for group in groups.values() if found.get(id(group[0])) is not None for a in group}
        return [a for asked in self.asked if (a := found.get(id(asked)) or (asked if id(asked) not in joined else None)) is not None]

    def _whole(self, group: Sequence[Asked]) -> Asked | None:
        """All chunks of a sequence, or of all sequences one after another; None where they are no chunks of what is read."""
        if any(align(r.tokens, a.target, a.ignored) is not None for r in self.sequences for a in group):
            return None
        best: tuple[float, Asked] | None = None
        for samples in {1, *(n for r in self.sequences for n in r.tokens.shape[:2])}:
            if any(a.target.numel() % samples for a in group) or group[0].target.numel() < 2 * samples:  # a decoder's single places
                continue
            target = torch.cat([a.target.reshape(samples, -1) for a in group], 1)
            found = max((x.agreement for r in self.sequences if (x := align(r.tokens, target, group[0].ignored)) is not None), default=0.0)
            if found and (best is None or found > best[0]):
                logits = torch.cat([a.logits.reshape(samples, -1, a.logits.shape[-1]) for a in group], 1)
                best = found, replace(group[0], target=target, logits=logits.reshape(-1, logits.shape[-1]))
        return best[1] if best is not None else None

    def _ask(self, function: str, args: Any, kwargs: dict[str, Any]) -> None:
        logits = args[0] if args else kwargs["input"]
        target = args[1] if len(args) > 1 else kwargs["target"]
        if target.is_floating_point() and logits.dim() > 1 and target.shape == logits.shape:
            classes = classes_of(target.movedim(1, -1))
            target = classes if classes is not None else target
        if target.is_floating_point() or logits.dim() not in (target.dim(), target.dim() + 1):
            return
        ignored = args[4] if len(args) > 4 else kwargs.get("ignore_index", IGNORED)
        rows = (logits.movedim(1, -1) if logits.dim() > 1 else logits).detach()
        rows = rows.reshape(-1, rows.shape[-1])
        self.asked.append(Asked(function, rows, target.detach(), ignored, location_of_frame(caller())))

    def _weigh(self, function: str, *factors: Any) -> None:
        """Scores times rows of 0 and 1 that mark one class each: the classes are asked for."""
        tensors = [t for t in factors if isinstance(t, torch.Tensor) and t.dim() > 1]
        if len(tensors) < 2 or tensors[0].shape != tensors[1].shape or tensors[0].shape[-1] < SHORTEST:
            return
        for scores, marks in (tensors, tensors[::-1]):
            classes = classes_of(marks) if scores.is_floating_point() and scores.numel() >= FEWEST * scores.shape[-1] else None
            if classes is not None:
                rows = scores.detach().reshape(-1, scores.shape[-1])
                self.asked.append(Asked(function, rows, classes, IGNORED, location_of_frame(caller()), picked=True))
                return

    def _index(self, scores: torch.Tensor, index: Any) -> None:
        """`scores[arange(n), target]`."""
        if not (isinstance(index, tuple) and len(index) == 2 and scores.dim() == 2 and scores.is_floating_point()):
            return
        rows, target = index
        if not isinstance(target, torch.Tensor) or target.dtype != torch.int64 or target.shape != scores.shape[:1] or len(target) < FEWEST:
            return
        rows = torch.as_tensor(rows, device="cpu") if isinstance(rows, (list, range)) else rows
        if isinstance(rows, torch.Tensor) and torch.equal(rows.cpu(), torch.arange(len(scores), device="cpu")):
            self.asked.append(Asked("gather", scores.detach(), target.detach(), IGNORED, location_of_frame(caller()), picked=True))

    def _pick(self, scores: torch.Tensor, dim: int | str, index: torch.Tensor, **_: Any) -> None:
        """Picks one entry of the last axis at each place."""
        last = dim in (-1, scores.dim() - 1) and index.shape == (*scores.shape[:-1], 1)
        if last and scores.dim() > 1 and scores.is_floating_point():
            rows = scores.detach().reshape(-1, scores.shape[-1])
            self.asked.append(Asked("gather", rows, index.detach()[..., 0], IGNORED, location_of_frame(caller()), picked=True))


def classes_of(marks: torch.Tensor) -> torch.Tensor | None:
    """The class that each row of `marks` [..., classes] has a 1 for, -100 for rows of zeros; None if it holds anything else."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        marks = marks.detach()
        first = marks.reshape(-1, marks.shape[-1])[0]
        if int((first != 0).sum()) > 1 or not bool(((marks == 0) | (marks == 1)).all()):
            return None
        counts = marks.sum(-1)
        if not bool((counts <= 1).all()) or not bool((counts == 1).any()):
            return None
        return marks.to(torch.uint8).argmax(-1).masked_fill(counts == 0, IGNORED)
