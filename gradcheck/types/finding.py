"""What rules say."""

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")  # most severe first

RuleStatus = Literal["finding", "passed", "not-applicable", "not-measured", "crashed", "suppressed"]


@dataclass(frozen=True)
class Evidence:
    """A number against its limit. `comparison` reads "value comparison limit" and describes the faulty state."""

    quantity: str
    value: float
    limit: float | None = None
    comparison: Literal["<", ">", "<=", ">=", "="] = ">"
    unit: str = ""
    layer: str | None = None  # where the worst value was found
    spread: tuple[float, float] | None = None  # lowest and highest over the seeds; `value` is then their median


@dataclass(frozen=True)
class Remedy:
    """A proposal. `safe` keeps the architecture, the checkpoint keys and the loss, `unsafe` changes one of them, `advice` has no edit."""

    name: str  # kebab-case, from the closed vocabulary of treatments
    text: str
    applicability: Literal["safe", "unsafe", "advice"] = "advice"


@dataclass(frozen=True)
class Finding:
    code: str
    name: str
    severity: Severity
    message: str  # what is wrong, where, with number and limit, and what it means for training
    layers: tuple[str, ...] = ()
    location: Location | None = None
    evidence: tuple[Evidence, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    confirmed: str = ""  # what makes an error one: "by the measured value alone", "by the probe: ..."
    cause: str | None = None  # code of the finding that this one follows from; it is shown under that one


@dataclass(frozen=True)
class RuleState:
    code: str
    name: str
    status: RuleStatus
    reason: str = ""
    lacking: str = ""  # quantity that was not measured for it; "" where the rule itself says what is missing
