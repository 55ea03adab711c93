"""Rules about numbers that leave the range or the resolution of their format.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

import math
import re
from collections.abc import Mapping

from gradcheck.analysis.wording import BY_VALUE, number, quoted
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import NonFinite

RULES = "non_finite singular_derivative half_overflow half_underflow lost_updates precision_forecast".split()

BFLOAT16 = Remedy(
    "bfloat16", "compute in torch.bfloat16, whose range is that of float32: dtype=torch.bfloat16 in autocast, no loss scaling", "safe"
)


def _harmful(m: Measurement) -> bool:
    """Something non-finite reached the loss or a gradient. A loss that raised has no value, whatever is noted for it."""
    raised = [c for c in m.losses if c.raised]
    if raised:
        return any(math.isnan(c.input_min) for c in raised)
    return (
        m.probe.ended == "non-finite"
        or any(e.direction == "loss" for e in m.non_finite)
        or any(not math.isfinite(x) for x in (*_losses(m), *m.probe.gradient_norms))
        or any(not s.gradient_finite for p in m.parameters for s in p.steps)
    )


def _losses(m: Measurement) -> tuple[float, ...]:
    """The probe's losses; a step that raised has none."""
    return m.probe.losses[:-1] if m.probe.ended == "raised" else m.probe.losses


def _severity(m: Measurement, step: int) -> tuple[Severity, str]:
    """Severity and confirmation of a non-finite value at this step."""
    if not m.data.given:
        return "warning", ""
    if step == 0:
        return "error", BY_VALUE
    if not m.optimizer.given:
        return "warning", ""
    whose = "script's own steps" if m.probe.live else "probe"
    return "error", f"by the {whose}: finite until step {step} with {m.optimizer.name} at rate {number(m.optimizer.lr)}"


def _cure(cures: Mapping[str, str], operation: str) -> str | None:
    """How to avoid the fault; the operation may be spelled "sqrt", "sqrt_", "__truediv__" or "SqrtBackward0"."""
    name = re.sub(r"backward\d*$", "", operation.lower()).strip("_").replace("truediv", "div").removeprefix("linalg_")
    return cures.get(name)


def _place(event: NonFinite) -> str:
    return f" in {quoted(event.layer)}" if event.layer else (" in the loss" if event.direction == "loss" else "")


def _kind(event: NonFinite) -> str:
    return "NaN" if event.kind == "nan" else "infinity"


def _inputs(event: NonFinite) -> str:
    if event.input_min is None or event.input_max is None:
        return ""
    return f" (its inputs span {number(event.input_min)} to {number(event.input_max)})"


def _evidence(event: NonFinite) -> tuple[Evidence, ...]:
    bounds = (("smallest input", event.input_min), ("largest input", event.input_max))
    ranges = [Evidence(what, x, None, "=", "", event.layer or None) for what, x in bounds if x is not None]
    return (Evidence("first step with a non-finite value", event.step, None, "="), *ranges)
