"""What the checks besides the probe found, each on its own copy: derivatives, dependence, recurrence, ..."""

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location

Intended = Literal["straight-through", "gradient-reversal", "gradient-scaling", "stop-gradient"]
Operation = Literal["log", "exp", "division"]
# What the argument of one is: probabilities of a softmax or sigmoid, a sum of exponentials, a layer's output as it is, or shares: the
# output of a ReLU over its sum, whatever guards the logarithm.
Source = Literal["softmax", "sigmoid", "sum of exponentials", "output", "shares", "other"]


@dataclass(frozen=True)
class Derivatives:
    """Directional derivatives of the loss in float64: autograd against central differences, along random directions."""

    error: float  # median over directions of |difference - autograd| / the larger of both
    directions: int
    deterministic: bool = True  # two forward passes gave the same loss
    function: str | None = None  # the custom autograd Function behind it
    function_error: float | None = None  # the same measure for that function by itself
    layer: str = ""  # module that it was localised to
    site: Location | None = None
    # An intended mismatch: values that autograd is told to see differently.
    intended: Intended | None = None
    hook: Literal["tensor", "module"] | None = None  # a backward hook that changes the gradient is behind it,
    hook_factor: float | None = None  # <gradient it returns, gradient it gets> / ||gradient it gets||^2
    gradcheck: str | None = None  # what torch.autograd.gradcheck says of the function; None: not run, or it agrees


@dataclass(frozen=True)
class Dependence:
    """What the model's output for a sample depends on: dropout off, normalization statistics frozen."""

    mixed: float | None = None  # change of the other samples' output when some samples are replaced, relative to their own change
    layer: str = ""  # the first module whose output mixes samples
    site: Location | None = None
    operation: str | None = None  # and the function in it: "lstm", "softmax", "reshape"
    # Mixing that is usually intended: statistics over the batch, relations of all samples to each other, choices by rank.
    meant: Literal["statistics", "relation", "routing"] | None = None
    ordered: bool = False  # what a sample gets depends on where in the batch it stands
    misplaced: bool = False  # samples get the outputs of others of the batch, each to be found in another's row
    placed: bool = False  # copies of one sample get different values, from an operation that adds something of their places
    unordered: bool = False  # the order of a sequence changes nothing, and one row of a table is added to all of its positions
    lost: bool = False  # parameters work on one of several inputs, and the outputs and the loss are the same whatever it holds
    dropped: bool = False  # the result of an operation of the model's is thrown away by the statement that computes it
    unpaired: bool = False  # the loss is the same when the samples' inputs are shuffled against their targets, and the outputs are not
    certain: bool = True  # it is known which axis the samples are on
    input_effect: float | None = None  # relative change of the output when every sample gets another one's input
    trained_loss: float | None = None  # of the trained copy on its batches,
    shuffled_loss: float | None = None  # with the inputs of each batch shuffled against its targets,
    standard_error: float | None = None  # and of their difference


@dataclass(frozen=True)
class Recurrence:
    """How the gradient of the last time step travels back through a recurrent layer, fused or written by hand."""

    layer: str
    type: str  # "LSTM", "GRU", "RNN", "RNNCell", ..., or the name of the hand-written module
    site: Location | None
    steps: int  # time steps T
    hidden: int | None = None  # units of the state
    # ||d(loss) / d(input of step t)||, or of a hand-written layer's recurrent weights' output; with `every_step`, in a fused
    # layer, of the last step's output instead of the loss. From the step that the loss sees least to the one that it sees best.
    gradients: tuple[float, ...] = ()
    slope: float | None = None  # decades per time step, positive: vanishes towards the first one
    every_step: bool = False  # the loss sees the outputs of all steps, not only of the last one, and its gradient reaches each
    spectral_radius: float | None = None  # of the recurrent weights; simple recurrent layers only
    forget_bias: float | None = None  # mean of the forget gate's bias, both of torch's added; LSTM only


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of single samples of a batch, and how much they disagree."""

    norms: tuple[float, ...] = ()  # 2-norm of the gradient of some samples of the first batch, before training
    batch: int = 0  # samples in a batch of the user
    largest: int | None = None  # index in the first batch of the sample with the largest norm
    noise_scale: float | None = None  # samples, after the probe; McCandlish et al. 2018: trace of the covariance over the squared mean
    noise_low: float | None = None  # interval of it over the draws
    noise_high: float | None = None
    draws: int = 0


@dataclass(frozen=True)
class Attention:
    """Attention weights of one layer before training, over unmasked keys."""

    layer: str
    site: Location | None
    heads: int
    keys: int
    entropy: float  # lowest over heads of the mean entropy over queries, relative to log(keys that are not masked)
    logit_max: float | None = None  # largest |logit| before the softmax
    logit_std: float | None = None


@dataclass(frozen=True)
class Baseline:
    """Ridge regression of the targets on the raw inputs, on held-out samples. Made only when the probe failed."""

    explained: float  # share of the targets' variance (of one column a class)
    shuffled: float  # the same when the targets are shuffled over the samples: what chance gives
    samples: int
    features: int


@dataclass(frozen=True)
class Validation:
    """The trained copy in evaluation mode, on the training batches of the probe and on validation batches."""

    train_loss: float
    loss: float
    standard_error: float  # of the difference
    start_loss: float | None = None  # on the validation batches before training
    samples: int = 0  # validation samples
    lowest: float | None = None  # lowest loss on them during the training, followed only where the end lies above the training loss,
    lowest_step: int | None = None  # and after how many steps


@dataclass(frozen=True)
class Sharpness:
    """Largest eigenvalue of the Hessian of the loss at the start, as far as a few iterations reach: never more than it."""

    value: float
    method: Literal["hessian-vector products", "finite differences"]
    iterations: int


@dataclass(frozen=True)
class CriticalRate:
    """The user's rate over the least one at which the loss rises along the optimizer's own update.

    Between 1/256 and 256, beyond which nothing was looked at. Exact to a factor of sqrt(2), and always on the right side of 1.
    """

    shares: tuple[float, ...]  # at the first step; if it is beyond 1, once more some steps later

    @property
    def share(self) -> float:
        """The least of them: beyond 1 the loss rose at every look."""
        return min(self.shares)


@dataclass(frozen=True)
class Clip:
    """Gradient clipping that the user configured."""

    kind: Literal["norm", "value", "adaptive"]
    threshold: float  # norm of all gradients together, largest entry, or share of the norm of a unit's weights
    clipped: float | None = None  # share of the probe's steps, after the first 20, whose norm was above the threshold
    coordinates: float | None = None  # by value: share of gradient entries that were clipped
    cosine: float | None = None  # by value: of the clipped gradient with the unclipped one, the mean over measured steps
    site: Location | None = None


@dataclass(frozen=True)
class Dropout:
    """A place where the training step drops values at random."""

    layer: str  # module, or "module:dropout" for a functional call in it
    rate: float  # share that is dropped
    site: Location | None = None
    attention: bool = False  # on attention weights


@dataclass(frozen=True)
class Penalty:
    """Terms over the weights themselves that the loss adds by hand, and the rest of the loss, before training."""

    value: float
    data: float
    degree: float  # <gradient of the penalty, weights> / penalty: 1 for L1, 2 for L2


@dataclass(frozen=True)
class LossOperation:
    """A logarithm, exponential or division between the last weighted layer and the loss, with nothing that keeps it in its domain."""

    operation: Operation
    of: Source
    site: Location | None
    layer: str = ""  # module that it lies in; "" outside the model
    minimum: float | None = None  # range of its argument in the first step (division: of |denominator|)
    maximum: float | None = None


@dataclass(frozen=True)
class Difference:
    """A subtraction between output and target outside the model: a regression loss written by hand."""

    site: Location | None
    shape: tuple[int, ...]
    output_mean: float
    output_std: float
    target_mean: float
    target_std: float


@dataclass(frozen=True)
class HalfGradients:
    """Gradients of layers that compute in float16, with the loss as it is and with the loss scaled up."""

    scale: float  # factor on the loss
    flushed: float  # share of gradient entries that are 0 as it is and are not 0 when scaled
    entries: int
    layer: str = ""  # the one with the largest share,
    layer_flushed: float = 0.0  # and its share


@dataclass(frozen=True)
class Cost:
    """What the cause of a finding costs the training: trained as it is, and with a change, on the same batches and random numbers.

    Losses are those of the data in evaluation mode: dropout off, labels not smoothed, no penalty on the weights. Of several pairs of
    trainings, the one that shows least.
    """

    code: str  # of the finding,
    layers: tuple[str, ...]  # with its layers
    location: Location | None  # and its place
    change: str  # what the other training had or lacked: "with forget-bias", "without dropout"; "": no change could make a difference
    steps: int
    start: float  # loss before training
    early: float  # trained as it is, after as many steps as the probe may take,
    loss: float  # and at the end; infinite when it diverged
    changed: float  # trained with the change
    chance: float | None = None  # loss of the best constant prediction
    pairs: int = 1  # of trainings, each with its own order of the batches
    held_out: bool = False  # the losses are on batches that were not trained on: of a change that regularizes less
    errors: tuple[str, ...] = ()  # codes of those that the training has as it is, and that this may be the cause of


@dataclass(frozen=True)
class IdleTerm:
    """A part of the loss that trains nothing, neither before training nor after the probe, or that trains the wrong way."""

    # zero: its gradient is; cut: it was cut off from what carries gradient; no-weights: a loss of what no trained weight makes;
    # derivative: of the model, zero everywhere; equals: a difference of two numbers that are always equal; runaway: the sum in which a term
    # takes the loss below zero; away: every output is led away from its target, `value` the least share of the gradient that does, or
    # ("easy") minus the rank correlation of a sample's loss with its factor; ratio:
    # one of probabilities, clipped as in PPO, leads the policy the wrong way: "upside-down", or the "objective" is lowered.
    kind: Literal["zero", "cut", "no-weights", "derivative", "equals", "runaway", "away", "ratio"]
    operation: str
    site: Location | None
    value: float
    loss: float  # |the whole loss|
    order: int = 0  # of a derivative


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss that is a sum or a mean over entries."""

    operation: str  # that sums or averages them
    site: Location | None
    shape: tuple[int, ...]  # of the entries
    weight: float  # of one entry in the loss


@dataclass(frozen=True)
class Imbalance:
    """Two terms of one loss, one of which weighs its entries much more, and the effect on what it is made of."""

    strong: LossTerm
    weak: LossTerm
    ratio: float  # of the weights of their entries
    gradients: float  # of the norms of their gradients in the weights that both train; before training or after the probe, the larger
    spread: float  # of what the strong term is made of, over the samples: after the probe over that before training
    balanced: float | None = None  # factor that makes the strong term a divergence beside a likelihood; None: it is no such divergence


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a loss that compares them with each other only. The spread: 1 for points all around, 0 for one point."""

    start: float  # spread before training,
    end: float  # and after the probe
    start_loss: float
    loss: float
    constant_loss: float  # with one point, any, in place of all of them
    stopped: bool  # gradient is stopped on one side
    site: Location | None = None  # of the loss
