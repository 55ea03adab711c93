"""What can go wrong, as a tree. Each error says what happened, where, and what to do next; the CLI exits with 2.

GradcheckError
  TargetError        the model, data, loss or optimizer cannot be found, loaded or run
  ConfigError        [tool.gradcheck], a flag, or a rule selection is wrong
  SavedRunError      a saved run cannot be read or written

TrainingStopped      not an error of gradcheck's: `watch(stop_on=...)` ends the user's loop with it
"""

import difflib
from collections.abc import Iterable

from gradcheck.types.finding import Finding
from gradcheck.types.location import Location


def closest(word: str, known: Iterable[str]) -> str:
    """The known name that a mistyped one was most likely to be, case ignored; "" when none is near."""
    by_folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=0.6)
    return by_folded[near[0]] if near else ""


class GradcheckError(Exception):
    """`message` says what is wrong; `location` where; `hint` the next step to take."""

    def __init__(self, message: str, *, hint: str = "", location: Location | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.location = location


class TargetError(GradcheckError):
    """The workload cannot be found, loaded, copied or run."""


class ConfigError(GradcheckError):
    """A setting, a flag or a rule selection is wrong."""


class SavedRunError(GradcheckError):
    """A saved run cannot be read, is of a newer schema, or cannot be written."""


class TrainingStopped(BaseException):
    """A watched run has a finding that `stop_on` asked to stop at. Not an Exception: loops that catch those are to end anyway."""

    def __init__(self, message: str, *, finding: Finding) -> None:
        super().__init__(message)
        self.finding = finding
