"""What the user's own training loop did, as it was seen for one optimizer while the script ran.

None means that it was not looked at. The absence of something is a fact, and has a value: 0, (), NO_SCALER, NEVER_EVALUATED.
"""

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location


@dataclass(frozen=True)
class LoopClip:
    """Calls of `clip_grad_norm_` or `clip_grad_value_` at one place. The counts are of calls."""

    kind: Literal["norm", "value"]
    threshold: float
    calls: int
    parameters: int  # that the last call was given
    empty: int = 0  # given no parameter at all
    foreign: int = 0  # given parameters that no optimizer of the script holds
    late: int = 0  # the gradients had been used by a step already
    early: int = 0  # the parameters had no gradient yet
    scaled: int = 0  # the gradients were still multiplied by the scaler's factor
    site: Location | None = None


@dataclass(frozen=True)
class LoopScaler:
    """A GradScaler and how the loop used it."""

    enabled: bool  # False: the scaler was made, but switched itself off because the device is missing
    factor: float  # of the loss
    scaled: int  # backward passes of a scaled loss
    steps: int  # steps taken by `scaler.step`
    bare: int  # steps that the optimizer took by itself on gradients that were still scaled
    updates: int  # calls of `scaler.update`
    step_site: Location | None = None
    scale_site: Location | None = None


NO_SCALER = LoopScaler(False, 1.0, 0, 0, 0, 0)


@dataclass(frozen=True)
class LoopEvaluation:
    """Steps whose forward pass ran with the model in evaluation mode."""

    steps: int
    first: int  # the first such step; steps before it were in training mode
    trained_before: bool  # an earlier step was in training mode
    dropouts: tuple[str, ...] = ()  # layers that were off
    norms: tuple[str, ...] = ()  # normalizations with trained weights that used their running statistics
    fresh: bool = False  # running statistics that had seen no batch
    site: Location | None = None  # of the call of eval()


NEVER_EVALUATED = LoopEvaluation(0, 0, False)


@dataclass(frozen=True)
class LoopBatches:
    """Whether the data changed from step to step."""

    compared: int  # steps whose inputs were looked at
    distinct: int  # different ones among them
    samples: int  # in one batch
    available: int | None = None  # samples that the loop could draw from, where it is known
    loader: bool = False  # they come from a DataLoader
    site: Location | None = None  # where the model is called with them
    reading: Location | None = None  # the user's `__getitem__` that gives the samples


@dataclass(frozen=True)
class LoopThawed:
    """Weights that were frozen at first, and that the losses of later steps send gradient to: no optimizer holds them."""

    names: tuple[str, ...]
    step: int  # the first one whose loss does


@dataclass(frozen=True)
class LoopReads:
    """Data that the loaders of a loop cannot reach, or change by reading them."""

    reachable: int | None = None  # samples that a sampler has weights for, where it has fewer than there are
    available: int | None = None
    sampler_site: Location | None = None
    changed: bool = False  # each reading of a sample changes it where it is kept
    changed_site: Location | None = None


@dataclass(frozen=True)
class LoopSchedule:
    """A scheduler of the learning rate: what it was built for, and how the script's loops step it."""

    kind: str  # class name
    length: int | None  # calls of step() that it is laid out for: total_steps, T_max, step_size, ...; None: not known
    decay: float | None  # factor on the rate for as many calls, where it goes on falling forever
    calls: int  # of step(), by the loop
    stepped: Literal["step", "epoch", ""]  # after each step of the optimizer, or once in an outer loop; "": not known
    epochs: int | None = None  # turns of the outer loop over the whole training
    epoch_steps: int | None = None  # steps of the optimizer in one of them
    site: Location | None = None  # where it is created
    step_site: Location | None = None
    warm_up: int | None = None  # calls of step() until the rate is at its highest; None: not known
    metrics: tuple[tuple[int, float], ...] = ()  # of a ReduceLROnPlateau: the steps before each call, and what it was given
    mode: str = ""  # likewise: min or max


@dataclass(frozen=True)
class LoopAverage:
    """A model whose weights follow those of another one, which an optimizer trains; or one that stays `beside` such a model."""

    name: str  # variables of the script; "" when they are not known
    leader: str
    stale: tuple[str, ...] = ()  # buffers that stayed as they were, while the leader's changed
    evaluated: bool = False  # it was called in evaluation mode, which uses them
    graded: int = 0  # parameters of it that the loss sends gradient to
    site: Location | None = None  # where it is called in evaluation mode, or else its weights are moved, or it is made
    called: bool = True  # in either mode, as far as calls are seen
    taken: bool = True  # the program may take its statistics later, by itself: it names what does
    beside: tuple[str, str] | None = None  # variables of a model that follows, and of its leader, where this one does not
    stood: int = 0  # steps through which it stayed


@dataclass(frozen=True)
class SilentTerm:
    """A part of the loss that says nothing in any observed pass, because of what the loop computed without gradient."""

    # equals: a factor that is the difference of equal numbers; no-weights: a loss that no trained weight has a part in; drawn: a target
    # that is new noise, while other noise of its shape was mixed into something; cut: what a call without gradient gave.
    kind: Literal["equals", "no-weights", "drawn", "cut"]
    operation: str
    site: Location | None
    passes: int
    low: float = 0.0  # of the numbers that are equal, over all passes
    high: float = 0.0


@dataclass(frozen=True)
class LoopRetained:
    """Graphs of losses that were alive at the same time."""

    steps: int  # whose graphs were
    window: int  # steps from the first of them to the last
    bytes: int  # that the nodes of one step's graph take, about
    name: str = ""  # of the variable that keeps them
    site: Location | None = None  # what is added to it


@dataclass(frozen=True)
class LoopWeighting:
    """Accumulated passes: how much one supervised element weighs in each. Medians over the steps."""

    ratio: float  # of the largest weight to the smallest, in one step
    difference: float | None  # of the gradient to that of elements that weigh alike, relative to it; None: not measured
    fewest: int  # elements of a pass
    most: int
    site: Location | None = None  # of backward()
    passes: int = 0  # that a step adds up, usually


@dataclass(frozen=True)
class LoopLeak:
    """Samples that the loop evaluates on, and how many of the same it trains on."""

    rows: int  # different ones that it looked at
    shared: int  # of these, that it trained on, as far as it was followed
    twins: float  # share of the samples that are trained on that have a twin among themselves
    whole: bool = False  # it looks at nearly as many as there are to train on
    site: Location | None = None  # where the loop goes through them first


@dataclass(frozen=True)
class LoopAdversary:
    """Another training, through whose weights this one's loss goes. Medians over the first steps and the last."""

    name: str  # variable of its optimizer
    loss_start: float
    loss_end: float
    own_start: float  # loss of this training
    own_end: float
    gradient_start: float  # norm of entries of this training's gradient
    gradient_end: float
    steps: int


@dataclass(frozen=True)
class LoopLoad:
    """A `load_state_dict` that left its module as it was."""

    kind: Literal["none", "own"]  # no entry has a name of the module's; all are the module's own tensors
    module: str  # class name
    entries: int
    given: str  # name of the first entry
    wanted: str  # of the module's first tensor
    site: Location | None


@dataclass(frozen=True)
class LoopRemade:
    """Parameters that the loop draws anew in each step: of layers that are made inside `forward`."""

    shapes: tuple[tuple[int, ...], ...]
    site: Location | None = None  # where a layer is made


@dataclass(frozen=True)
class LoopPairing:
    """Inputs and targets that are trained on in different pairs from those they came in.

    Shares of the variance of the targets that a linear model of the inputs, or nearest neighbours, explain on new samples.
    """

    trained: float  # as they are paired in training,
    source: float  # and as they came
    samples: int
    site: Location | None = None  # where the one of both is put in another order


NOT_RETAINED = LoopRetained(0, 0, 0)


@dataclass(frozen=True)
class LoopFacts:
    """The steps of one optimizer in the user's loop. The counts are of the steps that were looked at."""

    optimizer: str  # its variable in the script
    steps: int  # that it took while it was looked at
    backwards: int  # backward passes whose gradients were meant for it
    ended: Literal["stopped", "budget", "end", "raised", "exit"] = "stopped"  # how the run ended; stopped: by gradcheck
    over: bool = False  # other optimizers took steps after its last one, more than ever lay between two of its own
    error: str = ""  # the exception, when the script raised
    beside: int = 0  # steps of the script's other optimizers, where it took none
    taken: int = 0  # all steps, where only some of them were looked at; 0: they all were
    parameters: int = 0  # tensors in its groups
    moved: int | None = None  # of these, how many any step or other code changed; None: not looked at
    undone: float | None = None  # share of its steps whose changes were put back before the next one; None: too few, or not looked at
    losses: tuple[float, ...] = ()  # by step: the sum over its backward passes
    rates: tuple[float, ...] | None = None  # by step, from the first one on: the largest of its groups
    base_rate: float = 0.0  # that a scheduler works from; the first rate without one
    schedules: int | None = None  # calls of a scheduler's step()
    leftover: int | None = None  # steps whose gradients still held those of the step before
    lost: int | None = None  # steps whose gradients had been cleared between backward and step
    accumulated: int | None = None  # backward passes of one step from the same line, usually
    weight: float | None = None  # sum over these of the factor on the mean loss of each; None when that cannot be told
    skipped: int = 0  # times that gradients were cleared after its last step
    dropped: int | None = None  # steps that lost part of their accumulated passes to a clearing in between
    clips: tuple[LoopClip, ...] | None = None
    scaler: LoopScaler | None = None
    evaluation: LoopEvaluation | None = None
    batches: LoopBatches | None = None
    by_hand: bool = False  # the updates are no optimizer's of torch
    made: int | None = None  # optimizers that were made one after another, for the same parameters and at the same place
    life: int = 0  # steps that each of them took, usually; 0: there was but one
    forgets: bool = False  # what the steps of one leave in it is lost with it
    schedules_made: int | None = None  # schedulers of this optimizer that were made at the same place
    schedule_life: int = 0  # calls of step() of each of them, usually
    schedulers: tuple[LoopSchedule, ...] | None = None
    averages: tuple[LoopAverage, ...] | None = None  # None: not looked at
    silent: tuple[SilentTerm, ...] | None = None
    retained: LoopRetained | None = None
    adversary: LoopAdversary | None = None  # where both are followed for long enough
    opposed: bool = False  # its loss goes through weights that another optimizer trains, but not the other way round
    played_against: bool = False  # the reverse: another training's loss goes through its weights
    along: str = ""  # the opposed training whose loss moves what its weights say of this one's samples the same way as this one's does
    along_site: Location | None = None  # where this one's loss asks it
    rewarded: bool = False  # a training of the script, this one or another, is a policy gradient
    pairing: LoopPairing | None = None
    thawed: LoopThawed | None = None
    remade: LoopRemade | None = None
    loads: tuple[LoopLoad, ...] | None = None  # None: not looked at
    reads: LoopReads | None = None  # where something is wrong with them
    leak: LoopLeak | None = None  # where a loader gives data that are only looked at
    weighting: LoopWeighting | None = None  # where passes are accumulated, and their elements can be told
    step_site: Location | None = None
    backward_site: Location | None = None
    clear_site: Location | None = None
    schedule_site: Location | None = None
    made_site: Location | None = None
    put_back_site: Location | None = None
    schedule_made_site: Location | None = None

    @property
    def in_all(self) -> int:
        """Steps, looked at or not."""
        return max(self.taken, self.steps)
