"""How well the processes of a distributed training were seen to agree."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankStep:
    """Replicas of the parameters at one measured step, before the optimizer's step. Distances are relative to the norm on rank 0."""

    step: int
    distance: float  # largest ||w_r - w_0|| / ||w_0|| over parameters and ranks, on a sample of entries; inf: finite on one only
    parameter: str  # that it belongs to,
    rank: int  # on this rank
    differing: int  # parameters whose replicas differ by more than rounding
    compared: int
    gradients: float = 0.0  # largest relative difference between the norms of a parameter's gradient
    one_sided: tuple[str, ...] = ()  # parameters with a gradient on some ranks only


@dataclass(frozen=True)
class RankLoss:
    """The first loss of a rank that was not finite."""

    rank: int
    step: int


@dataclass(frozen=True)
class RankLevel:
    """Mean losses over the steps that all ranks took, each before the optimizer's step."""

    rank: int  # whose losses lie furthest from those of the others
    steps: int
    own: float
    others: float
    score: float  # mean difference over its standard error


@dataclass(frozen=True)
class RankFacts:
    """The ranks of a watched run. `steps` is empty where parameters are not replicated, or were not compared."""

    count: int
    wrapper: str = ""  # class that keeps the replicas equal: "DistributedDataParallel"; "" where none was seen
    steps: tuple[RankStep, ...] = ()
    non_finite: tuple[RankLoss, ...] = ()
    level: RankLevel | None = None
