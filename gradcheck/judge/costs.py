"""What findings cost, and what that makes of their severity: between a note and a warning the measured cost decides.

A paired training never makes an error, and takes none back: what learns less than it could still learns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gradcheck.judge.protocol import Limit
from gradcheck.nouns.verdict import SEVERITIES, Evidence, Finding, Severity
from gradcheck.progress import CLEAR_FALL, fall
from gradcheck.rules.words import number

if TYPE_CHECKING:
    from gradcheck.nouns.checks import Cost
    from gradcheck.nouns.measurement import Measurement

SLOW = Limit(0.5, "of the loss", "benchmarks/predictions.py: a training that falls this far trains, and nothing has to be explained")
SHARE = Limit(0.5, "of the fall with the remedy", "TODO")
GAP = Limit(0.3, "of chance", "TODO")
RATIO = Limit(0.25, "of the loss", "TODO")
LATE = ("OPT001", "OPT005", "REG001")
LEAST_FALL = 2 * CLEAR_FALL  # of the training with the remedy: one that hardly learns either proves nothing


def comparable(m: Measurement) -> bool:
    """Whether the probe ran with the user's own data and optimizer, and its loss can be told from chance."""
    known = m.data.given and m.optimizer.given and m.loss_given and not any(n.what == "probe" for n in m.not_measured)
    return known and bool(m.probe.losses) and m.probe.ended not in ("raised", "non-finite") and min(m.probe.losses) > 0


def learns_slowly(m: Measurement) -> bool:
    """Whether the probe leaves something to be explained."""
    return fall(m.probe, m.chance) < SLOW.value


def may_fail_later(finding: Finding) -> bool:
    """Whether it is about steps or a decay whose harm may show after the probe only."""
    return finding.code in LATE


def reference(start: float, chance: float | None) -> float:
    """The better of the loss at the start and that of the best constant prediction."""
    return max(min(start, chance) if chance is not None and chance > 0 else start, 1e-12)


def relative(start: float, chance: float | None, loss: float) -> float:
    return loss / reference(start, chance)


def fall_of(cost: Cost, loss: float) -> float:
    return 1 - relative(cost.start, cost.chance, loss)


def share_kept(cost: Cost) -> float:
    """The fall of the loss as it is trained, of the fall with the remedy."""
    reached = fall_of(cost, cost.treated)
    return fall_of(cost, cost.loss) / reached if reached > 0 else math.inf


def saved(cost: Cost) -> float:
    """What the remedy takes off the loss, in units of chance."""
    return (cost.loss - cost.treated) / reference(cost.start, cost.chance)


def is_costly(cost: Cost) -> bool:
    """Whether the training comes less than half as far as with the remedy, or ends at four times its loss and clearly above it."""
    if not math.isfinite(cost.treated) or fall_of(cost, cost.treated) < LEAST_FALL:
        return False
    if not math.isfinite(cost.loss):
        return True
    much_higher = cost.treated <= RATIO.value * cost.loss and saved(cost) >= GAP.value
    return share_kept(cost) < SHARE.value or much_higher


def dearest(costs: Sequence[Cost]) -> Cost | None:
    """The pair in which the remedy saved most."""
    return max(costs, key=saved, default=None)


def with_cost(finding: Finding, m: Measurement, up_to: Severity) -> Finding:
    """The finding with what it was measured to cost: a warning when that is much."""
    same = [c for c in m.costs if (c.code, c.layers, c.location) == (finding.code, finding.layers, finding.location)]
    cost = dearest(same)
    if cost is None or finding.severity == "error":
        return finding
    severity = finding.severity
    if is_costly(cost) and SEVERITIES.index(up_to) <= SEVERITIES.index("warning"):
        severity = "warning"
    where = "validation loss" if cost.validation else "loss"
    evidence = (
        Evidence(f"fall of the {where}, of that with {cost.remedy}", share_kept(cost), SHARE.value, "<", ""),
        Evidence(f"{where} that {cost.remedy} saves in {cost.steps} steps", saved(cost), GAP.value, ">", "of chance"),
    )
    message = f"{finding.message}; costs: {number(cost.treated)} instead of {number(cost.loss)} after {cost.steps} steps ({cost.remedy})"
    return replace(finding, severity=severity, message=message, evidence=(*finding.evidence, *evidence))
