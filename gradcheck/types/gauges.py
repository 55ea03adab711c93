"""What a watched run shows besides its layers and parameters, and the frame that it reports at each measured step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gradcheck.types.finding import Finding, Severity
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
    score: float  # mean difference over its standard error; of a jump: over the largest one that as many steps had before
    since: int | None = None  # of a jump: its first step. `steps` are those before it, `own` and `others` the losses in it


@dataclass(frozen=True)
class RankFacts:
    """The ranks of a run. `steps` is empty where parameters are not replicated, or were not compared."""

    count: int
    wrapper: str = ""  # class that keeps the replicas equal: "DistributedDataParallel"; "" where none was seen
    steps: tuple[RankStep, ...] = ()
    non_finite: tuple[RankLoss, ...] = ()
    level: RankLevel | None = None
    jump: RankLevel | None = None  # the largest one of a single rank's losses
    same_batches: int = 0  # steps that were compared, if in each all ranks were given the same batch though each should have its own


@dataclass(frozen=True)
class LiveLayer:
    """A layer at the last measured step."""

    name: str
    gradient: float | None = None  # rms of dL/d(output)
    update: float | None = None  # ||change|| / ||weight||
    dead: float | None = None  # share of its units


@dataclass(frozen=True)
class LiveFinding:
    severity: Severity
    code: str
    name: str
    message: str
    place: str = ""  # path:line:column


def live_findings(findings: Iterable[Finding]) -> tuple[LiveFinding, ...]:
    """Those that are not the consequence of another one."""
    return tuple(LiveFinding(f.severity, f.code, f.name, f.message, str(f.location or "")) for f in findings if f.cause is None)


@dataclass(frozen=True)
class Frame:
    step: int
    loss: float
    losses: tuple[float, ...] = ()  # over the whole run, evenly thinned
    norm: float | None = None  # of all gradients together, before clipping
    norms: tuple[float, ...] = ()  # at the measured steps
    update: float | None = None  # ||change|| / ||weight||, median over the weight matrices
    rate: float = 0.0  # learning rate
    speed: float = 0.0  # steps a second
    overhead: float | None = None  # share of the run's time that watching takes
    layers: tuple[LiveLayer, ...] = ()  # the worst first
    findings: tuple[LiveFinding, ...] = ()
    spikes: tuple[str, ...] = ()  # the last ones, in words


@dataclass(frozen=True)
class Magnitudes:
    """Entries of a tensor by size: counts[i] of those that were sampled have an absolute value in [2**(low + i), 2**(low + i + 1))."""

    low: int
    counts: tuple[int, ...]

    @property
    def edges(self) -> tuple[float, ...]:
        """log2 of the bounds of the bins, one more than there are bins."""
        return tuple(float(self.low + i) for i in range(len(self.counts) + 1))
