"""Successive halving (Jamieson and Talwalkar 2016): all candidates train for a little, the better ones for more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def survivors(ranked: Sequence[T], tried: int, share: float, fewest: int) -> list[T]:
    """Those that go on: a share of all that were tried, of the ones that may, with the best first."""
    return list(ranked[: max(fewest, math.ceil(share * tried))])
