"""Steps of a watched run that stand out, and what they are attributed to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location


@dataclass(frozen=True)
class Spike:
    """A loss or gradient norm far above those before it, or the first that is not finite."""

    step: int  # counted from 0, as measured steps are
    what: Literal["loss", "gradient"]
    value: float
    level: float  # median of the values before it
    size: int | None = None  # samples in its batch
    samples: tuple[int, ...] = ()  # their indices in the data set, where the loader says them
    worst: tuple[tuple[int, float], ...] = ()  # samples with the largest parts of the loss: place in the batch, share
    bad_batch: bool = False  # the batch itself holds NaN or infinity
    tensor: str = ""  # the parameter with the largest gradient, or the first whose gradient is not finite
    share: float | None = None  # its part of the squared norm of all gradients
    layer: str = ""
    site: Location | None = None
    file: str = ""  # where the batch is kept
