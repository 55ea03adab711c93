"""One training step seen as reading and answering: the tokens that embeddings read, and the classes that losses ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame

LOSSES = frozenset((F.cross_entropy, F.nll_loss))
PICKS = frozenset((torch.gather, torch.Tensor.gather))  # of the scores of given tokens: losses written by hand, rewards of policies
_IGNORED = -100  # torch's own choice


@dataclass(frozen=True)
class Read:
    """A call of an embedding."""

    layer: str
    tokens: torch.Tensor
    padding: int | None
    site: Location | None


@dataclass(frozen=True)
class Asked:
    """A call of a loss over classes, or a pick among them. Row i of `logits` is for entry i of `target`."""

    function: str
    logits: torch.Tensor
    target: torch.Tensor
    ignored: int
    site: Location | None
    picked: bool = False  # what becomes of it, and whether all of it counts, is not known


class Reading(ActivationRecorder):
    """Sees embeddings and losses over classes. `instead`: other tokens for some of the embedding's calls, by their number."""

    def __init__(self, names: Mapping[int, str], instead: Mapping[int, torch.Tensor] | None = None) -> None:
        super().__init__(names)
        self.instead = instead or {}
        self.reads: list[Read] = []
        self.asked: list[Asked] = []

    def _module_call(self, *details: Any) -> None:
        """Modules are only followed."""

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
        self.reads.append(Read(self.module_name, tokens.detach(), padding, location_of_frame(caller())))
        return self.instead.get(number, tokens)

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
        """One of the last axis at each place."""
        last = dim in (-1, scores.dim() - 1) and index.shape == (*scores.shape[:-1], 1)
        if last and scores.dim() > 1 and scores.is_floating_point():
            rows = scores.detach().reshape(-1, scores.shape[-1])
            self.asked.append(Asked("gather", rows, index.detach()[..., 0], _IGNORED, location_of_frame(caller()), picked=True))
