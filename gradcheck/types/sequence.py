"""Sequences: what is predicted from what, how much of it is supervised, and what padding does."""

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location


@dataclass(frozen=True)
class TokenStream:
    """Tokens that an embedding reads, aligned with the targets of a loss, place by place.

    The effects are of other tokens after some place t, on the logits: root mean square over the classes, in evaluation mode.
    """

    layer: str  # the embedding
    loss: int  # which of the losses of the step
    ahead: int  # places that the target is ahead of the token at its own place; 1: the target is the next token
    agreement: float  # share of the supervised places where it is
    places: int  # supervised places that were compared
    later: float | None = None  # effect at places after t; None: not looked at
    next: float | None = None  # effect at t + 1, whose own token is the first that was changed
    before: float | None = None  # largest effect at one supervised place up to t
    at: str = ""  # layer in which tokens after t first reach places up to t,
    operation: str = ""  # the function there,
    site: Location | None = None  # and its place
    pooled: bool = False  # they do by way of a summary of the whole sequence
    loss_site: Location | None = None
    read_site: Location | None = None  # where the model is given these tokens

    @property
    def leak(self) -> float | None:
        """The largest effect at or before t, relative to that after t."""
        return self.before / self.later if self.later and self.before is not None else None


@dataclass(frozen=True)
class Supervision:
    """Targets of one loss that count, over the batches that were looked at."""

    function: str
    batches: int
    empty: int  # batches in which no target counts
    ignore_index: int
    finite: bool  # whether the loss of such a batch is a finite number
    rows: int = 0  # sequences, where the targets lie in rows
    empty_rows: int = 0  # those without any target that counts
    targets: int = 0  # in one batch
    site: Location | None = None


@dataclass(frozen=True)
class SequenceFacts:
    streams: tuple[TokenStream, ...] = ()
    supervision: tuple[Supervision, ...] = ()

    @property
    def sites(self) -> tuple[Location | None, ...]:
        return (*(p for s in self.streams for p in (s.site, s.loss_site, s.read_site)), *(s.site for s in self.supervision))


@dataclass(frozen=True)
class Padding:
    """What padding does to the output: sequences of a batch as they are, against the same ones cut to their own length.

    In evaluation mode, each sequence by itself.
    """

    told: Literal["mask", "lengths", "index", "targets"]  # what tells the model, its embedding or the loss which places are padding
    share: float  # of the places of the first batch that are padding
    varies: bool | None  # whether batches differ in length, so that a sequence's padding depends on its neighbours; None: not known
    sequences: int  # that were compared
    change: float  # root mean square change of the output at real places, or of an output for the whole sequence,
    spread: float  # and how far outputs differ from each other: root mean square distance from their mean
    pooled: bool  # the output is one for the whole sequence
    at: str = ""  # layer in which padding first meets what is real,
    operation: str = ""  # the function there,
    site: Location | None = None  # and its place
    # Other content at the real places changes no output, while the padding does: the mask lets through what it should keep out.
    inverted: bool = False
    before: bool = False  # padding comes before what is real: its tokens were changed, not its number, with which positions move

    @property
    def effect(self) -> float:
        return self.change / self.spread if self.spread else float("inf") if self.change else 0.0
