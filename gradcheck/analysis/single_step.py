"""A program that ends after one step: further steps predict nothing about it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from gradcheck.analysis.wording import BY_VALUE

if TYPE_CHECKING:
    from gradcheck.types.finding import Finding
    from gradcheck.types.measurement import Measurement


def takes_one_step(m: Measurement) -> bool:
    """Whether the script ended by itself after one step, so that no loss of it was computed with changed weights."""
    loop = m.loop
    if loop is None or m.probe.live or loop.ended not in ("end", "exit"):
        return False
    return loop.steps == loop.backwards == 1 and all(map(math.isfinite, loop.losses))


def as_of_one_step(finding: Finding, m: Measurement) -> Finding:
    """An error that only further steps confirm is a warning if the script takes none."""
    if finding.severity != "error" or finding.confirmed == BY_VALUE or not takes_one_step(m):
        return finding
    message = f"{finding.message}; the script itself takes only one step: this is what more of them on the same batch would lead to"
    return replace(finding, severity="warning", message=message, confirmed="")
