"""Routers: which experts the tokens go to."""

from __future__ import annotations

from dataclasses import dataclass

from gradcheck.types.location import Location


@dataclass(frozen=True)
class Router:
    """A choice among modules, or slices of weights, that are alike; loads are over some batches, in training mode."""

    layer: str  # module that chooses
    experts: int
    chosen: int  # experts for each token
    tokens: int
    loads: tuple[float, ...]  # share of the choices that each expert gets, after the probe
    start_loads: tuple[float, ...]  # and before it
    entropy: float  # mean over the tokens of the entropy of the scores' softmax, over log(experts), after the probe
    site: Location | None = None

    @property
    def taken(self) -> float:
        """Share of the choices that the busiest experts get, as many as are chosen for a token."""
        return sum(sorted(self.loads)[-self.chosen :])

    @property
    def idle(self) -> int:
        """Experts that get nothing."""
        return sum(load == 0 for load in self.loads)
