"""Successive halving (Jamieson and Talwalkar 2016): all candidates train briefly, the better ones for longer."""

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def survivors(ranked: Sequence[T], tried: int, share: float, fewest: int) -> list[T]:
    """The candidates that go on: a share of all that were tried, chosen from those that may, best first."""
    return list(ranked[: max(fewest, math.ceil(share * tried))])
