"""What was measured, in plain numbers. Rules see nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gradcheck.types.checks import (
    Attention,
    Baseline,
    Clip,
    Cost,
    CriticalRate,
    Dependence,
    Derivatives,
    Difference,
    Embeddings,
    HalfGradients,
    IdleTerm,
    Imbalance,
    LossOperation,
    Recurrence,
    SampleGradients,
    Sharpness,
    Validation,
)
from gradcheck.types.data import DataFacts
from gradcheck.types.gauges import Gauge, RankFacts, Spike
from gradcheck.types.layers import Layer, LayerKind
from gradcheck.types.location import Ignore, Location
from gradcheck.types.loop import LoopFacts
from gradcheck.types.losses import Ascent, BroadcastMix, LossCall, Scramble, Softmax
from gradcheck.types.parameters import Cut, HiddenTensor, Parameter, ZeroDerivative
from gradcheck.types.sequence import Padding, SequenceFacts
from gradcheck.types.structure import Adaptation, LinearPair, Norm, Router, Shared, Statistics, Stream
from gradcheck.types.training import LogFacts, NonFinite, OptimizerFacts, Regularization, Run


@dataclass(frozen=True)
class Similarity:
    """A product that compares the rows of two matrices whose columns, and not their rows, were normalised."""

    site: Location | None  # of the normalization
    shape: tuple[int, ...]  # of the matrix: rows, features
    result: tuple[int, ...]


@dataclass(frozen=True)
class Entering:
    """Input of a trained layer that no trained layer has made: its loudest feature."""

    layer: str
    site: Location | None  # of the call
    shape: tuple[int, ...]
    std: float
    mean: float
    min: float
    max: float
    share: float  # of the features, those that are no less than a tenth as loud


@dataclass(frozen=True)
class Assumption:
    """Something that the user did not say and gradcheck had to decide."""

    about: str  # "model", "data", "loss", "optimizer", "validation", "device", ...
    text: str  # a sentence: "no loss given: cross entropy, since the output is [32, 10] and the targets are 10 classes"
    given: bool = False  # True: found by convention or by flag, nothing was guessed


Lack = Literal[
    "failed",  # gradcheck tried and could not: rules that need it say nothing
    "short",  # looked at, but not for long enough: findings of rules stand, their silence proves nothing
    "unsuited",  # this model, its data or its loop has nothing to look at
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
    scrambles: tuple[Scramble, ...] = ()
    shared: tuple[Shared, ...] = ()
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
    adaptation: Adaptation | None = None  # None: no frozen weight has an adapter
    recurrences: tuple[Recurrence, ...] = ()
    samples: SampleGradients | None = None
    attentions: tuple[Attention, ...] = ()
    half: HalfGradients | None = None
    baseline: Baseline | None = None
    validation: Validation | None = None
    sharpness: Sharpness | None = None
    critical: CriticalRate | None = None
    embeddings: Embeddings | None = None  # where the loss compares them with each other only
    idle_terms: tuple[IdleTerm, ...] = ()  # parts of the loss that train nothing
    imbalance: Imbalance | None = None  # None: no two terms of the loss weigh their entries differently
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
    log: LogFacts | None = None  # of a finished run that something else wrote down; None: there is none
    course: LogFacts | None = None  # what such a log would hold of a watched run
    gauges: tuple[Gauge, ...] = ()  # of a watched run
    ranks: RankFacts | None = None  # of a distributed training that was watched
    spikes: tuple[Spike, ...] = ()  # of a run that was watched
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
