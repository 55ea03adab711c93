"""One training step seen as reading and answering: the tokens that embeddings read, and the classes that losses ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.measure.checks.alignment import SHORTEST
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame

LOSSES = frozenset((F.cross_entropy, F.nll_loss))
PICKS = frozenset((torch.gather, torch.Tensor.gather))  # that read the scores of given tokens: losses written by hand, rewards of policies
_IGNORED = -100  # torch's own choice


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

    def _module_call(self, *details: Any) -> None:
        """Modules are only tracked."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not self.recording or (function is not F.embedding and function not in LOSSES and function not in PICKS):
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

    def _ask(self, function: str, args: Any, kwargs: dict[str, Any]) -> None:
        logits = args[0] if args else kwargs["input"]
        target = args[1] if len(args) > 1 else kwargs["target"]
        if target.is_floating_point() or logits.dim() not in (target.dim(), target.dim() + 1):
            return
        ignored = args[4] if len(args) > 4 else kwargs.get("ignore_index", _IGNORED)
        rows = (logits.movedim(1, -1) if logits.dim() > 1 else logits).detach()
        rows = rows.reshape(-1, rows.shape[-1])
        self.asked.append(Asked(function, rows, target.detach(), ignored, location_of_frame(caller())))

    def _pick(self, scores: torch.Tensor, dim: int | str, index: torch.Tensor, **_: Any) -> None:
        """Picks one entry of the last axis at each place."""
        last = dim in (-1, scores.dim() - 1) and index.shape == (*scores.shape[:-1], 1)
        if last and scores.dim() > 1 and scores.is_floating_point():
            rows = scores.detach().reshape(-1, scores.shape[-1])
            self.asked.append(Asked("gather", rows, index.detach()[..., 0], _IGNORED, location_of_frame(caller()), picked=True))
