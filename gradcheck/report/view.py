"""How reports are shown, in every format."""

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.finding import Severity

Color = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class View:
    """How reports are shown. Only `full` heeds the first five."""

    color: Color = "auto"
    profile: bool = False
    show_passed: bool = False
    show_all: bool = False
    written: bool = False  # the edits are in the source
    fail_on: Severity | Literal["never"] = "error"  # least severity of a finding that fails the run
    allow_partial: bool = False  # a run that was judged in part does not fail
