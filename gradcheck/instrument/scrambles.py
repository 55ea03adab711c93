"""Axes that `view` or `reshape` keeps in size and not in content: where axes are to change places, it cuts the entries anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import torch

from gradcheck.types.location import Location
from gradcheck.types.losses import Scramble

RESHAPES = frozenset(("view", "reshape"))


class Scrambles:
    """`look` at every call; one record for each place."""

    def __init__(self) -> None:
        self.found: dict[Location, Scramble] = {}

    def look(self, name: str, args: Any, output: Any, place: Callable[[], Location | None]) -> None:
        given = args[0] if args else None
        if name not in RESHAPES or not isinstance(given, torch.Tensor) or not given.is_floating_point():
            return
        before, after = tuple(given.shape), tuple(output.shape)
        axis = scrambled(before, after)
        site = place() if axis is not None else None
        if axis is not None and site is not None and site.detail is None:  # in code of the user
            self.found.setdefault(site, Scramble(name, site, before, after, axis))


def scrambled(before: Sequence[int], after: Sequence[int]) -> int | None:
    """The axis, not that of the samples, whose size is kept once and whose entries are not.

    Only where the cuts fit no splitting and joining of axes: of [8, 8, 24] as [24, 64] none of the new rows is made of whole old ones.
    Sizes that differ by 1 and change places are the shift of relative positions (Dai et al. 2019, Transformer-XL), which is meant.
    """
    if min(len(before), len(after)) < 3 or before[0] != after[0]:
        return None
    bounds = sorted({*accumulate(before[1:], mul), *accumulate(after[1:], mul)})
    if bounds[0] < 1 or all(b % a == 0 for a, b in pairwise(bounds)):
        return None
    for axis, size in enumerate(before[1:], 1):
        if size < 2 or before.count(size) > 1 or after.count(size) != 1:
            continue
        place = after.index(size)
        shifted = any(abs(size - other) == 1 and other in after[1:] for other in before[1:])
        if math.prod(before[axis + 1 :]) != math.prod(after[place + 1 :]) and not shifted:
            return axis
    return None
