"""What the rules about logs share: what to look at next, and words."""

from __future__ import annotations

from gradcheck.types.finding import Remedy

NO_LOG = "no log of a finished run was read"
WATCH = "gradcheck watch -- python train.py"


def look(at: str) -> Remedy:
    """What a log cannot show, and what does: every finding ends with it."""
    return Remedy("watch-run", f"{at}: the log does not show why; `gradcheck scan train.py`, or `{WATCH}`, does")


def at_step(step: float) -> str:
    return f"step {step:g}"
