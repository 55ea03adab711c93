"""What the user asks of a trial; imports no torch."""

import math
from dataclasses import dataclass

from gradcheck.errors import ConfigError

DEFAULT_BUDGET = 120.0
SEARCHES = ("grid", "random", "bayes")
DEFAULT_TRIALS = 12  # strengths that a search tries of each remedy


@dataclass(frozen=True)
class Options:
    """Raises ConfigError for options that exclude each other."""

    remedies: tuple[str, ...] = ()  # empty: what the scan's findings propose, and what is usual for the task
    budget: float = DEFAULT_BUDGET  # seconds
    steps: int | None = None  # of a run; None: what the budget allows
    seeds: int | None = None  # of the final; None: what the budget allows
    search: str | None = None  # "grid", "random", "bayes": how strengths are searched; None: three of each remedy
    trials: int | None = None
    study: str | None = None  # a file, or a storage URL of Optuna's, that the search goes on from
    workers: int | None = None  # processes; None: as many as processors, where they can be forked
    folds: int = 0
    time_ordered: bool = False

    def __post_init__(self) -> None:
        least = {"budget": (self.budget, 1), "steps": (self.steps, 3), "seeds": (self.seeds, 3), "trials": (self.trials, 1)}
        for name, (value, low) in (least | {"workers": (self.workers, 1)}).items():
            if value is not None and (not math.isfinite(value) or value < low):
                why = " (fewer give no interval)" if name == "seeds" else ""
                raise ConfigError(f"{name} must be at least {low}{why}; got {value:g}", hint=f"leave --{name} out for the default")
        if self.search is not None and self.search not in SEARCHES:
            raise ConfigError(f"unknown search {self.search!r}", hint=f"choose one of {', '.join(SEARCHES)}")
        if self.search is None and (self.trials is not None or self.study is not None):
            flag = "--trials" if self.trials is not None else "--study"
            raise ConfigError(f"{flag} is for a search of strengths", hint="add --search bayes, random or grid")
        if self.folds and self.time_ordered:
            raise ConfigError("--folds and --time-ordered exclude each other", hint="folds mix early and late samples")
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"--folds {self.folds} is not a cross-validation", hint="give 2 folds or more")
