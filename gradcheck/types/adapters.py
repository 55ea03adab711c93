"""Adapters: small trained parts beside frozen weights, such as the two factors of LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from gradcheck.types.location import Location


@dataclass(frozen=True)
class Adapter:
    """The adapter of one frozen weight."""

    layer: str  # module that holds the weight and the adapter; for parametrized weights, the module they belong to
    shape: tuple[int, ...]  # of the weight
    factors: tuple[str, ...]  # its parameters
    trainable: bool  # any of them is
    off: bool = False  # switched off or merged, by what its library says
    rank: int | None = None  # None: no product of two factors
    site: Location | None = None  # where it is made
    scale: float | None = None  # factor on the product of its two factors; None: not known, or no such adapter
    size: float | None = None  # norm of what it adds to the weight, over that of the weight, after the short training


@dataclass(frozen=True)
class Adaptation:
    adapters: tuple[Adapter, ...]
    bare: tuple[tuple[str, tuple[int, ...]], ...]  # linear layers that are frozen and have no adapter: name, shape of the weight
