"""Whether the targets of a loss are the tokens of an embedding, some places ahead, and how both are laid out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

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
