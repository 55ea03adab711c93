"""Units of a weight that equal one another in weight and in gradient, and so stay equal."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from gradcheck.training.clip import as_real
from gradcheck.workload.device import ends, on_host
from gradcheck.workload.dtensor import local

SAME = 1e-6  # relative distance below which two rows count as equal
AT_ONCE = 1 << 20  # entries that are compared at a time


@dataclass
class _Sorted:
    """Rows [n, d] in the order of their products with one random vector: equal rows have equal products and lie side by side."""

    rows: torch.Tensor
    low: torch.Tensor  # 0-d, as the next
    high: torch.Tensor
    order: torch.Tensor  # [n]
    close: torch.Tensor  # [n - 1] bool: the products of neighbours are equal
    direction: torch.Tensor  # the random vector, longer than needed

    def first_look(self) -> torch.Tensor:
        """Least, largest, whether any neighbours are close [3]."""
        return torch.stack([self.low, self.high, self.close.any().to(self.low.dtype)])

    def twins(self) -> torch.Tensor:
        """Rows that equal another one [n] bool: neighbours are compared entry by entry. Waits for no device."""
        rows, order = self.rows, self.order
        limit = SAME * torch.maximum(-self.low, self.high)
        where = self.close.nonzero().squeeze(1) if rows.is_cpu else torch.arange(len(rows) - 1, device=rows.device)
        equal = [
            (rows[order[part]] - rows[order[part + 1]]).abs().amax(1) <= limit for part in where.split(max(1, AT_ONCE // rows.shape[1]))
        ]
        twin = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        if equal:
            same = torch.cat(equal) & self.close[where]
            twin[order[where]] |= same
            twin[order[where + 1]] |= same
        return twin


@functools.lru_cache(maxsize=8)
def _direction(device: torch.device, count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def _sorted(rows: torch.Tensor, direction: torch.Tensor) -> _Sorted:
    wide = torch.promote_types(rows.dtype, torch.float32)
    low, high = (end.to(wide) for end in ends(rows))
    largest = torch.maximum(-low, high)
    scaled = direction[: rows.shape[1]].to(wide) / torch.where(largest > 0, largest, 1.0)  # the products of tiny entries would vanish
    key = torch.cat([part.to(wide) @ scaled for part in rows.split(max(1, AT_ONCE // rows.shape[1]))])
    order = key.argsort()
    return _Sorted(rows, low, high, order, key[order].diff().abs() <= SAME * rows.shape[1] ** 0.5, direction)


class EqualRows:
    """For weights with their gradients: which rows [units, fan_in] equal another one in both.

    Two looks, so that few matrices are compared entry by entry: bring `flags` to the host, and `read` them.
    """

    def __init__(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        self._given = [(_as_rows(weight), gradient) for weight, gradient in pairs]
        longest = max((rows.shape[1] for rows, _ in self._given), default=0)
        self._looked = [_sorted(rows, _direction(rows.device, longest)) if rows.numel() else None for rows, _ in self._given]
        self.flags = [found.first_look() for found in self._looked if found is not None]

    def read(self, flags: Sequence[torch.Tensor]) -> list[tuple[float, bool]]:
        """For each, the share of rows that equal another one, and whether all entries are equal. Waits only if some may be equal."""
        arrived = iter(flags)
        ends = [next(arrived).tolist() if found is not None else (0.0, 1.0, 0.0) for found in self._looked]
        alike = [i for i, (rows, _) in enumerate(self._given) if ends[i][2] and min(rows.shape) >= 2]
        counts = on_host([self._count(i) for i in alike])
        shares = {i: int(count) / len(self._given[i][0]) for i, count in zip(alike, counts, strict=True)}
        return [(shares.get(i, 0.0), low == high and self._given[i][0].numel() > 1) for i, (low, high, _) in enumerate(ends)]

    def _count(self, i: int) -> torch.Tensor:
        found, gradient = self._looked[i], self._given[i][1]
        assert found is not None
        twin = found.twins()
        if gradient is not None and gradient.numel() == found.rows.numel() and (not twin.is_cpu or bool(twin.any())):
            twin = twin & _sorted(gradient.reshape(found.rows.shape), found.direction).twins()
        return twin.sum()


def _as_rows(weight: torch.Tensor) -> torch.Tensor:
    weight = local(weight.detach())
    return as_real(weight).reshape(weight.shape[0], -1) if weight.numel() else weight.reshape(0, 0)
