"""What was seen of loss functions and their arguments."""

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function on the way to the loss, before any optimizer step."""

    function: str  # "cross_entropy", "nll_loss", "mse_loss", "binary_cross_entropy", ...
    site: Location | None
    input_shape: tuple[int, ...]
    input_min: float
    input_max: float
    input_mean: float = 0.0
    input_std: float = 0.0
    # Class axis only (axis 1, or -1 for 2-D): largest distance of a row's sum from 1, and of its logsumexp from 0.
    row_sum_error: float | None = None
    row_logsumexp_error: float | None = None
    producer: str | None = None  # last function before the input, views skipped: "softmax", "sigmoid", "relu", "tanh", "log_softmax", ...
    producer_layer: str | None = None
    producer_site: Location | None = None
    target_kind: Literal["classes", "probabilities", "values", "none"] = "none"
    target_shape: tuple[int, ...] = ()
    target_dtype: str = ""
    target_min: float | None = None
    target_max: float | None = None
    target_mean: float | None = None
    target_std: float | None = None
    target_rows_off: float | None = None  # share of the rows of probabilities, one for each unit, that do not sum to 1
    classes: int | None = None  # width of the class axis, for losses that have one
    # Targets outside the loss's domain: class labels outside [0, classes), probabilities outside [0, 1], blanks among labels of CTC.
    out_of_range: int = 0
    class_weights: tuple[float, ...] = ()  # one for each class, or the one of what is positive
    broadcast: tuple[int, ...] | None = None  # shape that input and target were broadcast to, when their shapes differ
    value: float | None = None
    chance: float | None = None  # loss of the best constant prediction for these targets
    uniform: float | None = None  # loss of the uniform prediction: log(classes)
    label_smoothing: float = 0.0
    weight_in_total: float | None = None  # d(total loss) / d(this loss): negative means that it is maximised
    summed: int = 1  # samples or entries that it adds up and does not average over
    raised: str | None = None  # the exception that the call raised
    target_made: bool = False  # the model made the target itself, as in temporal differences: it moves with the weights


@dataclass(frozen=True)
class Softmax:
    """A call of softmax or log_softmax in the forward pass or in the loss."""

    layer: str
    site: Location | None
    shape: tuple[int, ...]
    axis: int  # counted from 0
    implicit: bool  # dim was not given
    log: bool
    to_loss: bool  # nothing but shape changes lies between it and the model's output or the loss function
    over_batch: bool  # it goes over the axis of the samples: the first, or the second where another one comes before them
    single: str | None = (
        None  # the layer with one unit that makes its argument, where that is but one entry long; None: another one, or none
    )


@dataclass(frozen=True)
class BroadcastMix:
    """Arithmetic outside the model between tensors [N, 1] and [N] (or alike) that silently gave [N, N]."""

    operation: str
    site: Location | None
    left: tuple[int, ...]
    right: tuple[int, ...]
    result: tuple[int, ...]


@dataclass(frozen=True)
class Scramble:
    """A view or reshape after which an axis has its old size in another place, and other entries."""

    operation: str
    site: Location | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    axis: int  # of `before`


@dataclass(frozen=True)
class Ascent:
    """Whether the optimizer goes downhill: cosine of its first update with the negative gradient."""

    cosine: float
    unbounded: bool = False  # the loss fell far below zero and keeps falling faster
