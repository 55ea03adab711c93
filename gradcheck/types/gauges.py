"""What is measured in a watched run besides its layers and parameters: gauges, each a number of a tensor or a layer over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location

Quantity = Literal[
    "second-moment-lag",  # of a tensor: root mean of g^2 over Adam's second moment, both as in the step
    "gradient",  # of a tensor: 2-norm
    "attention-logit",  # of a head: the largest of some queries
    "attention-entropy",  # of a head: mean over queries, relative to log(keys)
    "log-z",  # of the output layer: mean log of the softmax's denominator, without its sign
    "expert-load",  # of an expert: share of the choices
    "loss-scale",  # of a GradScaler
    "stream",  # of a normalization over features: root mean square of what it is given, in a transformer the residual stream
    "dormant-share",  # of an activation: units at most 0.025 times as large as its mean unit
    "effective-rank",  # of what the output layer is given: participation ratio of the variances of its directions
]


@dataclass(frozen=True)
class Departure:
    """Values far above all that were measured before, one after the other."""

    step: int  # of the first
    value: float  # the largest
    level: float  # median of those before
    score: float  # distance of the largest from it, in standard deviations
    lasted: int  # measured steps
    back: bool  # it is over


@dataclass(frozen=True)
class Gauge:
    """`steps` and `values` are equally long, and thinned out; peak and departure are of all measured steps."""

    quantity: Quantity
    name: str  # of the tensor; of the layer, with a number for one of its heads or experts: "blocks.0.attention, head 3"
    layer: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    peak: float = 0.0  # the largest value
    peak_step: int = 0
    departure: Departure | None = None  # the longest
    site: Location | None = None
