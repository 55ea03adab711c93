"""What is done about findings, and what came of it."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from gradcheck.types.location import Location
from gradcheck.types.training import Run

Applicability = Literal["safe", "unsafe", "advice"]

# Kinds of treatment, in the order in which a plan takes them: wrong wiring is repaired before anything is tuned.
Stage = Literal["wiring", "loss", "data", "initialization", "architecture", "optimizer", "clipping", "regularization"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Setting = float | int | str | bool

TIME_WAS_UP = "time was up"  # reason of an outcome that is untried for it

OutcomeStatus = Literal[
    "kept",  # it earned its place in the plan
    "not-needed",  # the others cure without it
    "not-verified",  # it was tried, and did not help beyond noise
    "worse",  # it was tried, and made something worse
    "inapplicable",  # it cannot be applied to this model: `reason` says why
    "failed",  # applying or training it raised
    "advice",  # it has no edit; nothing was tried
    "untried",  # time was up
]


@dataclass(frozen=True)
class Fix:
    """A treatment with its settings for one model. Plain data: it can be saved, shown, and applied to any copy."""

    treatment: str  # name in the vocabulary, as in `Remedy.name`
    text: str  # one sentence with this model's numbers
    stage: Stage
    applicability: Applicability
    settings: dict[str, Setting] = field(default_factory=dict)  # {"max_norm": 1.0}, {"gain": 1.41, "activation": "relu"}
    layers: tuple[str, ...] = ()  # modules (or parameters) that are treated; empty: the workload as a whole
    findings: tuple[str, ...] = ()  # codes that it is to cure
    location: Location | None = None  # the finding's place: where an edit belongs unless the layers' own sites say otherwise
    checkpoint: str = ""  # what becomes of saved checkpoints: "keys change: ..."; empty: they still load
    citation: str = ""


@dataclass(frozen=True)
class Effect:
    """A paired difference, treated minus untreated, over seeds. Medians; the interval is that of the paired difference."""

    metric: str  # "training loss", "validation loss", "accuracy", ...
    base: float
    treated: float
    difference: float
    low: float  # 95 % interval of the difference
    high: float
    seeds: int
    better: bool  # the interval excludes zero on the good side, or the untreated runs diverged and the treated ones did not
    lower_is_better: bool = True


@dataclass(frozen=True)
class Change:
    """A statistic of a finding, before and after."""

    code: str
    quantity: str
    before: float
    after: float | None  # None: the rule no longer measures it
    limit: float | None = None
    comparison: str = ">"  # describes the faulty state, as in Evidence
    unit: str = ""
    layer: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A fix that was tried, what it did, and how it would be written into the source."""

    prescription: Fix
    status: OutcomeStatus
    reason: str = ""
    changes: tuple[Change, ...] = ()
    cured: tuple[str, ...] = ()  # codes that are gone with it
    new: tuple[str, ...] = ()  # codes that came with it
    effect: Effect | None = None
    base: tuple[Run, ...] = ()  # untreated, one run a seed
    treated: tuple[Run, ...] = ()
    diff: str = ""  # unified diff of its source edit; empty: there is no site to edit


@dataclass(frozen=True)
class Proof:
    """What was kept, together, against the untreated model: trained in pairs, on seeds that had no part in choosing."""

    effect: Effect | None  # None: all that was kept is in the training loop, and proved by running the edited script
    base: tuple[Run, ...]  # untreated, one run a seed
    treated: tuple[Run, ...]
    cured: tuple[str, ...] = ()  # codes of errors and warnings that are gone
    left: tuple[str, ...] = ()  # those that stay, or came
