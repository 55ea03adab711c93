"""Rules about mechanisms that show before the loss goes, in runs that are watched.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

import math
from collections.abc import Iterable
from statistics import median
from typing import TypeVar

from gradcheck.analysis.curves import thirds
from gradcheck.types.gauges import Gauge
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Unmet, not_applicable, not_measured
from gradcheck.types.training import LogColumn

RULES = (
    "second_moment_lags gradient_out_of_line attention_logits_grow output_logits_drift expert_dies weights_run_away "
    "signal_runs_away loss_scale_falls gradients_leave_format"
).split()

NOT_WATCHED = "no run was watched"
T = TypeVar("T")

WINDOW = 4  # measured steps that are compared


def others(count: int, what: str = "tensor") -> str:
    return f", and {count} more {what}s" if count > 1 else f", and 1 more {what}" if count else ""


def runaways(
    m: Measurement, limits: Limits, what: str, sizes: Iterable[tuple[T, Iterable[tuple[int, float]]]]
) -> list[tuple[T, float, float]]:
    """What grew beyond the limit in the last third of a run, by a larger factor than in the third before, with both factors.

    `sizes`: of each, the steps at which it was measured, and how large it was. Ends the rule where no run was watched for long enough.
    """
    if not m.probe.live:
        raise Unmet(not_applicable(NOT_WATCHED))
    if m.steps < limits["steps"] or len(m.measured_steps) < limits["looks"]:
        reason = f"{m.steps} steps, {len(m.measured_steps)} of them measured, are too few to tell how {what} grow"
        raise Unmet(not_measured(reason))
    found = []
    for x, points in sizes:
        known = [(float(step), size) for step, size in points if math.isfinite(size)]
        grown = thirds(LogColumn("", tuple(step for step, _ in known), tuple(size for _, size in known)))
        if grown is not None and grown[1] > max(limits["growth"], grown[0]):
            found.append((x, *grown))
    return found


def grows(gauge: Gauge) -> tuple[float, float] | None:
    """Medians of the last quarter of its values and of the quarter before; None of fewer than four times `WINDOW`."""
    quarter = len(gauge.values) // 4
    if quarter < WINDOW:
        return None
    return median(gauge.values[-2 * quarter : -quarter]), median(gauge.values[-quarter:])
