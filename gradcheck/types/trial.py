"""What a trial of remedies says: what entered, how each fared against the untreated model, and what is recommended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradcheck.types.fix import Effect, Fix
from gradcheck.types.measurement import Assumption

Task = Literal["classification", "binary", "multilabel", "regression", "language", "other"]

EntryStatus = Literal[
    "untreated",
    "helps",  # the interval of the final duel excludes zero, and the difference is large enough to matter
    "promising",  # better in the screening; it was not in the final, or that was cut short
    "undecided",  # better in the final by more than a little, though that may be chance
    "no-difference",
    "worse",
    "diverged",  # in most of its runs
    "inapplicable",  # it cannot be applied to this model: `reason` says why
    "failed",  # applying or training it raised
    "untried",  # time was up
]


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps: median, smallest and largest value over the seeds."""

    steps: tuple[int, ...] = ()
    median: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class MetricRange:
    """A metric on the validation data at the end: median, smallest and largest over the seeds."""

    metric: str  # "accuracy", "F1 of class 3", "R2", "generalization gap", ...
    median: float
    low: float
    high: float
    lower_is_better: bool = False


@dataclass(frozen=True)
class Entry:
    """A remedy, or several together, in the trial."""

    name: str  # "dropout", "l1 + early-stopping", "untreated"
    title: str  # with its strength: "dropout 0.3"
    status: EntryStatus
    text: str = ""  # one sentence for people
    prescriptions: tuple[Fix, ...] = ()
    effect: Effect | None = None  # against the untreated model on the same seeds
    fresh: bool = False  # these seeds had no part in choosing the entry or its strength
    seeds: int = 0
    steps: int = 0
    training: Curve = Curve()
    validation: Curve = Curve()
    scores: tuple[MetricRange, ...] = ()
    gradient_spread: float | None = None  # largest over median gradient norm after the first steps; median over seeds
    step_ms: float | None = None
    sparsity: float | None = None  # share of the weights (of two axes and more) that are exactly zero
    diverged: int = 0  # of `seeds`
    reason: str = ""


@dataclass(frozen=True)
class Interaction:
    """Whether the effects of remedies add up. Effects are differences to the untreated model; `excess` is what is beyond their sum."""

    names: tuple[str, ...]
    single: tuple[float, ...]
    together: float
    excess: float
    low: float  # 95 % interval of the excess over seeds
    high: float
    verdict: Literal["add up", "overlap", "reinforce", "undecided"]


@dataclass(frozen=True)
class SearchPoint:
    """One strength that the search tried; its value is the mean validation loss over the seeds of the search."""

    remedy: str
    settings: dict[str, float]
    value: float | None
    state: Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class TrialResult:
    """Entries are ranked: what helps first, by how much; `base` is the untreated model."""

    target: str
    task: Task
    metric: str  # that the ranking goes by: "validation loss", or "training loss" when there is nothing to validate on
    base: Entry
    entries: tuple[Entry, ...]
    verdict: str  # for people
    relevant: float = 0.0  # smallest difference of the metric that counts
    confidence: float = 0.95  # that all intervals of the final duel hold at once
    interactions: tuple[Interaction, ...] = ()
    recommended: str = ""  # name of an entry; empty: leave the model as it is
    diff: str = ""  # unified diff of its source edits
    unwritten: tuple[tuple[str, str], ...] = ()  # (remedy, why it cannot be written into the source)
    searched: tuple[SearchPoint, ...] = ()
    steps: int = 0
    samples: tuple[int, int] = (0, 0)  # for training and for validation, of one seed
    assumptions: tuple[Assumption, ...] = ()
    budget: float = 0.0  # seconds
    seconds: float = 0.0
    ended: Literal["done", "budget", "interrupted"] = "done"
    version: str = ""
    falling: bool = False  # the untreated model's loss was still falling when its training ended: too short to say what helps in the end

    def entry(self, name: str) -> Entry | None:
        """The entry of a remedy, or of several: "l1 + dropout"."""
        return next((e for e in (self.base, *self.entries) if e.name == name), None)

    @property
    def helpful(self) -> tuple[Entry, ...]:
        """What helped, best first."""
        return tuple(e for e in self.entries if e.status == "helps")

    @property
    def prescriptions(self) -> tuple[Fix, ...]:
        """Of the recommended entry."""
        chosen = self.entry(self.recommended) if self.recommended else None
        return chosen.prescriptions if chosen is not None else ()

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON; written to `path` when one is given. Raises `gradcheck.errors.SavedRunError` when that fails."""
        from gradcheck.saved_run import dumps, write_text

        text = dumps(self)
        if path is not None:
            write_text(Path(path), text)
        return text

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from gradcheck.report.html import shown

        return shown(self)
