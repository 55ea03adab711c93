"""What the checks beside the probe found, each made on a copy of its own: derivatives, dependence, recurrence, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradcheck.nouns.places import Location


@dataclass(frozen=True)
class Derivatives:
    """Directional derivatives of the loss in float64: autograd against central differences, along random directions."""

    error: float  # median over directions of |difference - autograd| / the larger of both
    directions: int
    deterministic: bool = True  # two forward passes gave the same loss
    function: str | None = None  # the custom autograd Function behind it
    layer: str = ""  # module that it was localised to
    site: Location | None = None
    # A mismatch that is meant: values that autograd is told to see differently.
    intended: Literal["straight-through", "gradient-reversal", "stop-gradient"] | None = None
    gradcheck: str | None = None  # what torch.autograd.gradcheck says of the function; None: not run, or it agrees


@dataclass(frozen=True)
class Dependence:
    """What the model's output for a sample depends on: dropout off, normalization statistics frozen."""

    mixed: float | None = None  # largest relative change of the output of the other samples when one sample changes
    layer: str = ""  # the first module whose output mixes samples
    site: Location | None = None
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
    gradients: tuple[float, ...] = ()  # ||d(loss on the last step) / d(input of step t)||, t = 0..T-1
    slope: float | None = None  # decades per time step, positive: vanishes towards the first one
    every_step: bool = False  # the loss sees the outputs of all steps, not only of the last one
    spectral_radius: float | None = None  # of the recurrent weights; simple recurrent layers only
    forget_bias: float | None = None  # mean of the forget gate's bias, both of torch's added; LSTM only


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of single samples of a batch, and how much they disagree."""

    norms: tuple[float, ...] = ()  # 2-norm of each sample's gradient
    batch: int = 0  # samples in a batch of the user
    noise_scale: float | None = None  # samples; McCandlish et al. 2018: trace of the covariance over the squared mean
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
class Validation:
    """The trained copy in evaluation mode, on the training batches of the probe and on validation batches."""

    train_loss: float
    loss: float
    standard_error: float  # of the difference
    start_loss: float | None = None  # on the validation batches before training
    samples: int = 0  # validation samples


@dataclass(frozen=True)
class Sharpness:
    """Largest eigenvalue of the Hessian of the loss at the start."""

    value: float
    method: Literal["hessian-vector products", "finite differences"]
    iterations: int


@dataclass(frozen=True)
class Clip:
    """Gradient clipping that the user configured."""

    kind: Literal["norm", "value"]
    threshold: float
    clipped: float | None = None  # share of the probe's steps, after the first 20, whose norm was above the threshold
    coordinates: float | None = None  # by value: share of gradient entries that were clipped
    cosine: float | None = None  # by value: of the clipped gradient with the unclipped one, the mean over measured steps
    site: Location | None = None
