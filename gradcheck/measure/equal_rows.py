"""Units of a weight that equal one another in weight and in gradient, and so stay equal."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradcheck.training.clip import as_real
from gradcheck.workload.device import ends, on_host
from gradcheck.workload.dtensor import local

SAME = 1e-6  # relative distance below which two rows count as equal
AT_ONCE = 1 << 20  # entries that are compared at a time
SMALL = 1 << 12  # entries of a tensor that is looked at together with others


@dataclass
class _Sorted:
    """Matrices [k, n, d], rows of each in the order of their products with one random vector: equal rows have equal products and lie side
    by side."""

    rows: torch.Tensor
    low: torch.Tensor  # [k], as the next
    high: torch.Tensor
    order: torch.Tensor  # [k, n]
    close: torch.Tensor  # [k, n - 1] bool: the products of neighbours are equal
    direction: torch.Tensor  # the random vector, longer than needed

    def first_look(self) -> torch.Tensor:
        """Least, largest, whether any neighbours are close [k, 3]."""
        return torch.stack([self.low, self.high, self.close.any(1).to(self.low.dtype)], 1)

    def twins(self, i: int) -> torch.Tensor:
        """Rows of a matrix that equal another one [n] bool: neighbours are compared entry by entry. Waits for no device."""
        rows, order, close = self.rows[i], self.order[i], self.close[i]
        limit = SAME * torch.maximum(-self.low[i], self.high[i])
        where = close.nonzero().squeeze(1) if rows.is_cpu else torch.arange(len(rows) - 1, device=rows.device)
        equal = [
            (rows[order[part]] - rows[order[part + 1]]).abs().amax(1) <= limit for part in where.split(max(1, AT_ONCE // rows.shape[1]))
        ]
        twin = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        if equal:
            same = torch.cat(equal) & close[where]
            twin[order[where]] |= same
            twin[order[where + 1]] |= same
        return twin


def blocks(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Places, and the tensors there as one [k, ...]: small ones of one shape take the time of one. Empty ones are left out."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, t in enumerate(tensors):
        if t.numel():
            groups.setdefault((t.device, t.dtype, t.shape) if t.numel() <= SMALL else (i,), []).append(i)
    for members in groups.values():
        some = max(1, AT_ONCE // tensors[members[0]].numel())
        for part in (members[at : at + some] for at in range(0, len(members), some)):
            yield part, torch.stack([tensors[i] for i in part]) if len(part) > 1 else tensors[part[0]][None]


@functools.lru_cache(maxsize=8)
def _direction(device: torch.device, count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def _sorted(rows: torch.Tensor, direction: torch.Tensor) -> _Sorted:
    """rows: [k, n, d]."""
    wide, (count, _, width) = torch.promote_types(rows.dtype, torch.float32), rows.shape
    low, high = (end.to(wide).reshape(count) for end in (ends(rows) if count == 1 else ends(rows.flatten(1), 1)))
    largest = torch.maximum(-low, high)
    scaled = direction[:width].to(wide) / torch.where(largest > 0, largest, 1.0)[:, None]  # the products of tiny entries would vanish
    key = torch.cat([(part.to(wide) @ scaled[:, :, None]).squeeze(2) for part in rows.split(max(1, AT_ONCE // (count * width)), 1)], 1)
    order = key.argsort(1)
    return _Sorted(rows, low, high, order, key.gather(1, order).diff(dim=1).abs() <= SAME * width**0.5, direction)


class EqualRows:
    """For weights with their gradients: which rows [units, fan_in] equal another one in both.

    Two looks, so that few matrices are compared entry by entry: bring `flags` to the host, and `read` them.
    """

    def __init__(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        self._given = [(_as_rows(weight), gradient) for weight, gradient in pairs]
        longest = max((rows.shape[1] for rows, _ in self._given), default=0)
        self._blocks = [
            (members, _sorted(block, _direction(block.device, longest))) for members, block in blocks([rows for rows, _ in self._given])
        ]
        self.flags = [found.first_look() for _, found in self._blocks]

    def read(self, flags: Sequence[torch.Tensor]) -> list[tuple[float, bool]]:
        """For each, the share of rows that equal another one, and whether all entries are equal. Waits only if some may be equal."""
        ends, alike, counts = [(0.0, 1.0)] * len(self._given), list[int](), list[torch.Tensor]()
        for (members, found), looked in zip(self._blocks, flags, strict=True):
            for place, (i, (low, high, close)) in enumerate(zip(members, looked.tolist(), strict=True)):
                ends[i] = low, high
                if close and min(self._given[i][0].shape) >= 2:
                    alike.append(i)
                    counts.append(self._count(found, place, self._given[i][1]))
        shares = {i: int(count) / len(self._given[i][0]) for i, count in zip(alike, on_host(counts), strict=True)}
        return [(shares.get(i, 0.0), low == high and self._given[i][0].numel() > 1) for i, (low, high) in enumerate(ends)]

    @staticmethod
    def _count(found: _Sorted, place: int, gradient: torch.Tensor | None) -> torch.Tensor:
        twin, rows = found.twins(place), found.rows[place]
        if gradient is not None and gradient.numel() == rows.numel() and (not twin.is_cpu or bool(twin.any())):
            twin = twin & _sorted(gradient.reshape(1, *rows.shape), found.direction).twins(0)
        return twin.sum()


def _as_rows(weight: torch.Tensor) -> torch.Tensor:
    weight = local(weight.detach())
    return as_real(weight).reshape(weight.shape[0], -1) if weight.numel() else weight.reshape(0, 0)
