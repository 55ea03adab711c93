"""What the user asks of a fix."""

from dataclasses import dataclass, replace

from gradcheck.errors import ConfigError
from gradcheck.types.training import Run

LEAST_BUDGET, MOST_BUDGET = 180.0, 300.0  # seconds for treating and verifying, within which the default lies
TRAININGS = 100


@dataclass(frozen=True)
class RepairOptions:
    unsafe: bool = False
    steps: int = 100  # of a training
    seeds: int = 3  # of the verification
    budget: float = 60.0  # seconds for treating and verifying, the first scan not counted; 0: `with_budget` says


def options_of(unsafe: bool, steps: int | None, seeds: int, budget: float | None) -> RepairOptions:
    """Raises ConfigError for numbers that make no sense."""
    if steps is not None and (not isinstance(steps, int) or steps < 3):
        raise ConfigError(f"steps must be a whole number of at least 3; got {steps!r}", hint="without it the budget decides")
    if not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(f"seeds must be a whole number of at least 1; got {seeds!r}", hint="three tell a cure from chance")
    if budget is not None and not budget > 0:
        raise ConfigError(f"budget must be above 0 seconds; got {budget!r}", hint="budget=60")
    return RepairOptions(unsafe, steps or RepairOptions.steps, seeds, budget or 0.0)


def with_budget(options: RepairOptions, probe: Run) -> RepairOptions:
    """The default budget: the time that so many trainings like the probe take."""
    if options.budget:
        return options
    needed = TRAININGS * options.steps * probe.seconds / max(1, len(probe.losses))
    return replace(options, budget=min(MOST_BUDGET, max(LEAST_BUDGET, needed)))
