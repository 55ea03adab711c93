"""What the rules about logs share: what to look at next, and words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradcheck.types.finding import Remedy

if TYPE_CHECKING:
    from gradcheck.types.log import LogFacts
    from gradcheck.types.measurement import Measurement

NO_LOG = "no log of a finished run was read"
WATCH = "gradcheck watch -- python train.py"


def recorded(m: Measurement) -> LogFacts | None:
    """The log of a finished run, or what one would hold of a run that is watched."""
    return m.log if m.log is not None else m.course


def look(m: Measurement, at: str) -> Remedy:
    """What a log cannot show, and what does: every finding ends with it."""
    if m.log is None:
        return Remedy("scan-script", f"{at}: `gradcheck scan train.py` tries other rates and looks at single layers")
    return Remedy("watch-run", f"{at}: the log does not show why; `gradcheck scan train.py`, or `{WATCH}`, does")


def at_step(step: float) -> str:
    return f"step {step:g}"
