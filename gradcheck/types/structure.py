"""What a model is built of, beyond its layers: normalizations, linear layers in a row, residual streams, adapters, routers."""

from dataclasses import dataclass

from gradcheck.types.location import Location


@dataclass(frozen=True)
class Norm:
    """One call of a normalization in the first step. Fields from `values` on are those of batch normalization."""

    layer: str
    site: Location | None
    batch: bool  # normalises each feature over the batch
    added: bool = False  # post-norm: takes the sum of a normalised bypass and a branch, and nothing else takes that sum
    values: float | None = None  # values that a feature's mean and variance are taken over
    index: int | None = None  # position among the batch normalizations of a step
    of_batch: bool = True  # uses the statistics of the batch, not the running ones
    momentum: float | None = None  # weight of the newest batch in the running statistics; None: cumulative, or no such statistics
    tracks: bool = False  # it has running statistics
    fresh: bool = False  # the running statistics are still those of a new layer: mean 0, variance 1
    trains: bool = True  # its gain, or something before it, is trained
    after: str | None = None  # linear or conv layer whose output it takes directly, feature by feature
    dropout: str | None = None  # dropout whose output reaches it through at most linear, conv and activation layers
    dropout_rate: float = 0.0
    # Variance of the dropout's output, dropout on, over that of its input: what the running variance is too large by. Only where
    # nothing lies between the two.
    dropout_shift: float | None = None
    raised: str | None = None  # what torch said when it refused the batch


@dataclass(frozen=True)
class LinearPair:
    """Two linear, or two conv, layers with nothing but affine operations between them."""

    first: str
    second: str
    inputs: int  # per unit of the first
    inner: int  # units (channels) of the first
    outputs: int  # of the second
    alone: bool = True  # the output of the first goes nowhere else
    projects: bool = False  # the first takes the product of two activations, as the output projection of an attention does
    batch_norm: bool = False  # a batch normalization lies between them


@dataclass(frozen=True)
class Shared:
    """One module that its parent holds under several names, and that a pass calls several times with the same input."""

    names: tuple[str, ...]
    site: Location | None  # where it is made
    calls: int  # with the same input
    targets: int  # different ones that loss functions compare these outputs with; 0: the outputs reach none directly


@dataclass(frozen=True)
class Stream:
    """A residual stream: sums of a bypass and a branch, each the bypass of the next one. Sizes are root mean squares at the start."""

    layers: tuple[str, ...]  # modules in which the sums are made
    site: Location | None  # of the first sum
    start: float  # size of the bypass of the first sum
    end: float  # size of the last sum
    ratios: tuple[float, ...]  # branch over bypass at each sum
    normalized: bool = False  # a normalization takes the last sum


@dataclass(frozen=True)
class Statistics:
    """The trained copy on the batches of the probe, dropout off: how good batch normalization's running statistics are."""

    evaluated: float  # loss in evaluation mode
    batch: float  # loss with the statistics of each batch
    # Running variance over the variance that the layer sees in evaluation mode, the median over features, by Norm.index.
    shifts: tuple[float, ...] = ()
    initial: float | None = None  # loss in evaluation mode with the statistics from before training


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
