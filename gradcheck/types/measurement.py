"""What was measured, in plain numbers. Rules see nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gradcheck.types.checks import (
    Attention,
    Baseline,
    Clip,
    Cost,
    Dependence,
    Derivatives,
    Difference,
    Dropout,
    Embeddings,
    HalfGradients,
    IdleTerm,
    LossOperation,
    Penalty,
    Recurrence,
    SampleGradients,
    Sharpness,
    Validation,
)
from gradcheck.types.location import Ignore, Location
from gradcheck.types.loop import LoopFacts
from gradcheck.types.ranks import RankFacts
from gradcheck.types.routing import Router
from gradcheck.types.sequence import Padding, SequenceFacts
from gradcheck.types.structure import LinearPair, Norm, Statistics, Stream

LayerKind = Literal[
    "linear",  # Linear, Bilinear, F.linear, matrix product with a parameter
    "conv",  # convolutions, transposed ones too
    "recurrent",  # RNN, GRU, LSTM and their cells
    "embedding",
    "norm",
    "activation",
    "attention",  # scaled dot-product attention
    "softmax",
    "dropout",
    "container",  # a module that calls other modules
    "other",
]


@dataclass(frozen=True)
class TensorStats:
    """One tensor in one pass. `nan` and `inf` are counts; the other numbers are over finite entries when any is not."""

    count: int
    nan: int = 0
    inf: int = 0
    mean: float = 0.0
    std: float = 0.0
    norm: float = 0.0  # 2-norm of the whole tensor, accumulated in float64
    min: float = 0.0
    max: float = 0.0
    zeros: float = 0.0  # fraction of entries that are exactly 0
    # Histogram of floor(log2|x|) over a sample of the non-zero entries: counts[i] entries have exponent low + i.
    exponent_low: int = 0
    exponent_counts: tuple[int, ...] = ()

    @property
    def rms(self) -> float:
        return self.norm / self.count**0.5 if self.count else 0.0

    @property
    def finite(self) -> bool:
        return self.nan == 0 and self.inf == 0


@dataclass(frozen=True)
class Snapshot:
    """A layer at one measured step. Counters cover every call of the layer in that step."""

    step: int
    output: TensorStats | None = None
    gradient: TensorStats | None = None  # dL/d(output)
    # Activations only: fraction of entries where the function is flat; see measure/units.py for each function's limit.
    saturated: float | None = None
    # Features that reach the layer, over samples: mean pairwise cosine (1: all samples at one point). Heads and norms only.
    sample_cosine: float | None = None
    # The same over the tokens of each sample, for inputs of shape [samples, tokens, features].
    token_cosine: float | None = None


@dataclass(frozen=True)
class Profile:
    """Cost of one layer in one training step. Containers include their children."""

    parameters: int = 0  # numbers, not bytes
    flops: int | None = None  # forward, multiply and add counted as two
    activation_bytes: int = 0
    forward_ms: float = 0.0
    backward_ms: float | None = None


@dataclass(frozen=True)
class Layer:
    """A module, or a functional call inside one, that ran in the forward pass. Merged over its calls."""

    name: str  # "encoder.layers.0.linear1"; a functional call is "encoder.layers.0:relu"; the root module is ""
    type: str  # class name of the module, or name of the function: "Linear", "relu"
    kind: LayerKind
    order: int  # position of its first call in the forward pass
    calls: int  # per step
    output_shape: tuple[int, ...]  # of the first call
    site: Location | None = None  # where it is created (modules) or called (functions)
    parameters: tuple[str, ...] = ()  # names of parameters that it holds itself, not its children's
    function: str | None = None  # activations: canonical name: "relu", "gelu", "sigmoid", "tanh", ...
    # What becomes of its output, read from the autograd graph:
    activation: str | None = None  # the activation or softmax that follows before the next linear or conv layer
    normalized: bool = False  # a normalization follows before the next activation, linear or conv layer
    residual: bool = False  # its output is added to a branch that bypasses it
    gate: bool = False  # its output multiplies another activation
    head: bool = False  # no linear, conv or recurrent layer comes after it on the way to the loss
    trained: bool = True  # it lies on a path that carries gradient
    fan_in: int | None = None  # inputs per output unit, for linear and conv layers
    groups: int = 1
    # Units (channels) of an activation that were never positive in any measured batch; None where that says nothing.
    units: int | None = None
    dead_units: int | None = None
    effective_samples: int = 0  # samples x positions that `dead_units` was looked at over
    dead_batches: int = 0  # different batches that it was looked at over
    dead_at_start: int | None = None  # the same count before the first optimizer step
    snapshots: tuple[Snapshot, ...] = ()
    profile: Profile | None = None
    dtype: str = ""  # of its output: "float32", "float16", ...
    depth: int | None = None  # layers with weights on the longest way from the input up to it
    nets: tuple[int, ...] = ()  # of several nets side by side, such as actor and critic, those that it is part of

    def at(self, step: int) -> Snapshot | None:
        """The snapshot of the given step; negative numbers count from the last one, as in a list."""
        if step < 0:
            return self.snapshots[step] if len(self.snapshots) >= -step else None
        return next((s for s in self.snapshots if s.step == step), None)


@dataclass(frozen=True)
class ParameterStep:
    """A parameter at one measured step, before (weights, gradient) and through (update) the optimizer's step."""

    step: int
    norm: float  # 2-norm of the parameter
    gradient_norm: float | None  # None: autograd left no gradient
    gradient_max: float | None = None
    gradient_finite: bool = True
    update_ratio: float | None = None  # ||change by the optimizer|| / ||parameter||, on a sample of entries when it is large
    duplicate_units: float | None = None  # fraction of rows whose weights equal another row's (and whose gradients do, if any)
    constant: bool = False  # all entries equal
    # Parameters of half precision: share of the entries with a gradient that the optimizer's step left exactly as they were.
    unchanged: float | None = None


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model. Tied ones appear once, under their first name."""

    name: str
    layer: str  # module that holds it
    shape: tuple[int, ...]
    count: int
    dtype: str
    trainable: bool
    groups: int  # number of parameter groups of the optimizer that hold it
    aliases: tuple[str, ...] = ()
    mean: float = 0.0  # at the start, as `std`
    std: float = 0.0
    used: bool = True  # the autograd graph of the loss reaches it (in any batch)
    steps: tuple[ParameterStep, ...] = ()
    lr: float | None = None  # of its parameter group
    weight_decay: float = 0.0  # of its parameter group
    site: Location | None = None  # where the script makes it, of a tensor that no module holds

    def at(self, step: int) -> ParameterStep | None:
        if step < 0:
            return self.steps[step] if len(self.steps) >= -step else None
        return next((s for s in self.steps if s.step == step), None)


# ------------------------------------------------------------------- graph, loss, data


@dataclass(frozen=True)
class Cut:
    """A place where the gradient is cut off although parameters lie before it."""

    operation: str  # "detach", "no_grad", "data", "numpy", "item", "argmax", "round", "bool", "int-cast", "unused-output", "not-called"
    layer: str  # first module whose output is cut; "" for the root
    site: Location | None
    parameters: tuple[str, ...]  # trainable parameters that get no gradient because of it
    in_package: bool = False  # the operation is in an installed package's code: by that package's design


@dataclass(frozen=True)
class ZeroDerivative:
    """A place that gradients go through and come out of as zeros: a step function, a product with fixed zeros, or one of two zeros."""

    operation: str  # "sign", "round", "floor", "ceil", "trunc", "product", "zeros"
    layer: str  # module whose code it is in; "" for the root
    site: Location | None
    parameters: tuple[str, ...]  # trainable parameters before it; of "zeros" the two that are multiplied
    factor: str = ""  # of a product: path of the buffer, frozen parameter or plain attribute that is zero: "blocks.0.scale"


@dataclass(frozen=True)
class HiddenTensor:
    """A trainable tensor that the loss depends on and that `model.parameters()` does not list."""

    name: str  # where it was found: "self.blocks[0].weight", or "" when it could not be found
    owner: str  # class name of the hidden module, or "Parameter"
    shape: tuple[int, ...]
    site: Location | None
    in_optimizer: bool


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
    classes: int | None = None  # width of the class axis, for losses that have one
    out_of_range: int = 0  # targets outside the loss's domain (class labels outside [0, classes), probabilities outside [0, 1])
    broadcast: tuple[int, ...] | None = None  # shape that input and target were broadcast to, when their shapes differ
    value: float | None = None
    chance: float | None = None  # loss of the best constant prediction for these targets
    uniform: float | None = None  # loss of the uniform prediction: log(classes)
    label_smoothing: float = 0.0
    weight_in_total: float | None = None  # d(total loss) / d(this loss): negative means that it is maximised
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


@dataclass(frozen=True)
class Similarity:
    """A product that compares the rows of two matrices whose columns, and not their rows, were normalised."""

    site: Location | None  # of the normalization
    shape: tuple[int, ...]  # of the matrix: rows, features
    result: tuple[int, ...]


@dataclass(frozen=True)
class BroadcastMix:
    """Arithmetic outside the model between tensors [N, 1] and [N] (or alike) that silently gave [N, N]."""

    operation: str
    site: Location | None
    left: tuple[int, ...]
    right: tuple[int, ...]
    result: tuple[int, ...]


@dataclass(frozen=True)
class InputFacts:
    """One input tensor over the batches of the scan."""

    name: str
    shape: tuple[int, ...]  # of the first batch
    dtype: str
    mean: float = 0.0
    std: float = 0.0
    min: float = 0.0
    max: float = 0.0
    feature_std_ratio: float | None = None  # largest over smallest non-zero std of a feature; 2-D inputs only
    largest_feature_mean: float | None = None  # largest |mean| / std over features, 2-D inputs only
    non_finite: int = 0
    first_non_finite: tuple[int, ...] | None = None  # batch, then the index inside it: sample, feature, ...
    constant_features: int = 0
    used_by: LayerKind | None = None  # kind of the first layer that takes it
    duplicate_features: int = 0  # columns of 2-D inputs that are another column, scaled and shifted; constant ones do not count
    duplicate_samples: int = 0  # samples that are exactly another one; 2-D and larger inputs
    conflicting_samples: int = 0  # of these, those whose twin has another label
    samples: int = 0  # that were compared; 0: they were not
    moments: tuple[tuple[float, float], ...] = ()  # mean and std of each feature, or channel of images; of no more than 64


@dataclass(frozen=True)
class Entering:
    """What a trained layer is given that no trained layer has made: its loudest feature."""

    layer: str
    site: Location | None  # of the call
    shape: tuple[int, ...]
    std: float
    mean: float
    min: float
    max: float
    share: float  # of the features, those that are no less than a tenth as loud


@dataclass(frozen=True)
class LabelFacts:
    """Class labels over the batches of the scan."""

    classes: int  # width of the model's output, where known; else the largest label + 1
    counts: tuple[int, ...]  # occurrences by class
    classes_per_batch: tuple[int, ...]
    minimum: int
    maximum: int
    sorted: bool = False  # labels of consecutive batches come in order: the data are not shuffled
    ignored: int = 0  # entries equal to ignore_index


@dataclass(frozen=True)
class DataFacts:
    given: bool  # False: synthesised by gradcheck, and rules that judge data do not apply
    batches: int
    batch_size: int
    inputs: tuple[InputFacts, ...] = ()
    labels: LabelFacts | None = None
    repeated: bool = False  # fewer batches than steps: they were cycled


# ------------------------------------------------------------------- training, numerics


@dataclass(frozen=True)
class OptimizerFacts:
    name: str  # class name: "SGD", "AdamW"
    given: bool  # False: assumed by gradcheck; rules about the optimizer then only advise
    adaptive: bool  # the size of its step hardly depends on the size of the gradient (Adam and kin)
    lr: float  # of the first group
    lrs: tuple[float, ...] = ()
    momentum: float = 0.0
    weight_decay: float = 0.0
    maximize: bool = False
    warming_up: bool = False  # the present rate is below `initial_lr`: a scheduler is attached
    stale: int = 0  # tensors in its groups that are not in the model (any more) and get no gradient
    site: Location | None = None
    eps: float | None = None  # of the first group
    betas: tuple[float, ...] = ()
    decoupled: bool = False  # weight decay shrinks the weights themselves and is not added to the gradient


ONE_OPTIMIZER = "one optimizer for all steps"  # an experiment


@dataclass(frozen=True)
class Run:
    """A short training of a copy of the model. Losses are before each step, in training mode."""

    name: str  # "probe" with the user's optimizer; "rate x0.1", "adam 0.001 on one batch", ...
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...] = ()  # total 2-norm at each step; may be empty
    batches: int = 1  # distinct batches that it cycled through
    lr: float | None = None
    rate_factor: float | None = None  # against the user's rate
    ended: Literal["done", "budget", "non-finite", "learned", "raised"] = "done"
    error: str | None = None  # the exception, when it raised
    chance: float | None = None  # loss of the best constant prediction on its batches, where they are not those of the probe
    floor: float = 0.0  # loss of the best prediction there is: soft targets leave some, as smoothed labels do
    surrogate: str = ""  # why the level of its loss does not say how well the model does; "": it does
    seconds: float = 0.0
    lifted: tuple[str, ...] = ()  # what of the user's regularization was taken away: see Regularization.kinds
    validated: tuple[tuple[int, float], ...] = ()  # (steps taken, loss on the validation batches in evaluation mode)
    live: bool = False  # the user's own run, watched: of any length, on its own schedule; long ones have bins of equally many steps
    loss_scale: float = 1.0  # that the loss was multiplied by; the norms here are divided by it
    clipped: bool = False  # the norms were read after clipping
    beside: bool = False  # other optimizers of the loop train against it, or beside it: its loss need not fall, and may rise


@dataclass(frozen=True)
class Regularization:
    """What holds the training back on purpose, and how far the probe came when that is looked past.

    The two losses are those of the data alone: without dropout, without penalties, labels not smoothed, mean over some batches.
    They, and the runs, are there only where the probe did not learn clearly, or where a penalty hides what it learned.
    """

    dropouts: tuple[Dropout, ...] = ()
    penalty: Penalty | None = None
    smoothing: float = 0.0  # of labels
    kinds: tuple[str, ...] = ()  # of "dropout", "weight decay", "penalty", "label smoothing": those that were strong enough to be lifted
    start_loss: float | None = None
    trained_loss: float | None = None  # of the probe's copy
    chance: float | None = None  # of that loss: the best constant prediction
    runs: tuple[Run, ...] = ()  # the probe again without them, each alone and then together; losses are those of the data


@dataclass(frozen=True)
class NonFinite:
    """The first operation whose inputs were finite and whose result was not."""

    direction: Literal["forward", "backward", "loss", "loop"]  # loop: without gradient, outside the model
    operation: str
    layer: str
    site: Location | None
    step: int
    kind: Literal["nan", "inf"]
    input_min: float | None = None  # range of what went in (forward), or of the forward input (backward)
    input_max: float | None = None
    dtype: str = ""  # of the result
    rank: int | None = None  # process of a distributed training
    # What about its arguments made it so, in how many entries, rows or samples, and of how many; see measure/domain.py.
    reason: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class Ascent:
    """Whether the optimizer goes downhill: cosine of its first update with the negative gradient."""

    cosine: float
    unbounded: bool = False  # the loss fell far below zero and keeps falling faster


# ------------------------------------------------------------------------- measurement


@dataclass(frozen=True)
class Assumption:
    """Something that the user did not say and gradcheck had to decide."""

    about: str  # "model", "data", "loss", "optimizer", "validation", "device", ...
    text: str  # a sentence: "no loss given: cross entropy, since the output is [32, 10] and the targets are 10 classes"
    given: bool = False  # True: found by convention or by flag, nothing was guessed


Lack = Literal[
    "failed",  # gradcheck tried, and could not: rules that need it say nothing
    "short",  # looked at, but not for long enough: what rules find stands, their silence proves nothing
    "unsuited",  # this model, its data or its loop has nothing that the look could be taken at
    "left-out",  # on purpose: by the user (--fast), or since this kind of run never looks at it
]


@dataclass(frozen=True)
class NotMeasured:
    """A quantity, or a layer, that was not measured. `why` and `remedy` are for the user, `detail` is for a report of a bug."""

    what: str
    why: str
    lack: Lack = "failed"
    remedy: str = ""  # what the user can do about it
    detail: str = ""  # the exception


@dataclass(frozen=True)
class Environment:
    python: str = ""
    torch: str = ""
    platform: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class Measurement:
    """All that was measured on one workload with one seed."""

    target: str
    seed: int
    steps: int  # optimizer steps that the probe took
    measured_steps: tuple[int, ...]
    environment: Environment
    layers: tuple[Layer, ...]  # in order of first call
    parameters: tuple[Parameter, ...]
    optimizer: OptimizerFacts
    data: DataFacts
    probe: Run
    experiments: tuple[Run, ...] = ()  # only when the probe did not learn: other rates, one small batch
    losses: tuple[LossCall, ...] = ()
    loss_given: bool = False
    chance: float | None = None  # loss of the best constant prediction over the batches; None when the loss is not a known one
    softmaxes: tuple[Softmax, ...] = ()
    similarities: tuple[Similarity, ...] = ()
    mixes: tuple[BroadcastMix, ...] = ()
    loss_operations: tuple[LossOperation, ...] = ()
    differences: tuple[Difference, ...] = ()
    entering: tuple[Entering, ...] = ()
    cuts: tuple[Cut, ...] = ()
    zero_derivatives: tuple[ZeroDerivative, ...] = ()
    hidden: tuple[HiddenTensor, ...] = ()
    non_finite: tuple[NonFinite, ...] = ()
    ascent: Ascent | None = None
    derivatives: Derivatives | None = None
    dependence: Dependence | None = None
    sequence: SequenceFacts | None = None
    padding: Padding | None = None
    routers: tuple[Router, ...] | None = None  # None: nothing that could be experts
    recurrences: tuple[Recurrence, ...] = ()
    samples: SampleGradients | None = None
    attentions: tuple[Attention, ...] = ()
    half: HalfGradients | None = None
    baseline: Baseline | None = None
    validation: Validation | None = None
    sharpness: Sharpness | None = None
    embeddings: Embeddings | None = None  # where the loss compares them with each other only
    idle_terms: tuple[IdleTerm, ...] = ()  # parts of the loss that train nothing
    clip: Clip | None = None
    functional_step: float | None = None  # rms change of the output by the first update / its std (at least 0.1); adaptive optimizers only
    small_epsilon: Run | None = None  # the probe again with Adam's usual epsilon, where the user's is much larger
    regularization: Regularization | None = None
    norms: tuple[Norm, ...] = ()  # of the first step, in order; one that raised later comes last
    pairs: tuple[LinearPair, ...] = ()
    streams: tuple[Stream, ...] = ()
    normalization: Statistics | None = None
    costs: tuple[Cost, ...] = ()  # of findings, where the probe learned slowly
    loop: LoopFacts | None = None  # the user's own training loop; None: none was seen
    ranks: RankFacts | None = None  # of a distributed training that was watched
    pretrained: bool = False  # weights or normalization statistics show that the model was trained before
    training: bool = True  # the model was in training mode when it was handed over
    not_measured: tuple[NotMeasured, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    ignores: tuple[Ignore, ...] = ()
    snippets: dict[str, dict[int, str]] = field(default_factory=dict)  # file -> line number -> text, around sites
    seconds: dict[str, float] = field(default_factory=dict)  # by phase

    def layer(self, name: str) -> Layer | None:
        return next((x for x in self.layers if x.name == name), None)

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)

    def of_kind(self, *kinds: LayerKind) -> Iterator[Layer]:
        return (x for x in self.layers if x.kind in kinds)
