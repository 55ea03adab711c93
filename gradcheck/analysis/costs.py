"""What findings cost, and their severity by it: the measured cost decides between info and warning.

A paired training never removes an error, and never adds one to a training that learns. Of a training that fails, but learns with one
finding's remedy alone, that finding is the error.
"""

import math
from dataclasses import replace

from gradcheck.analysis.convergence import CLEAR_FALL, levelled, relative_decrease, training_outcome
from gradcheck.analysis.wording import number
from gradcheck.types.checks import Cost
from gradcheck.types.finding import SEVERITIES, Evidence, Finding, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit

SLOW = Limit(0.5, "of the loss", "benchmarks/predictions.py: a training that falls this far trains, and nothing has to be explained")
FAR = Limit(0.5, "of the fall with the change", "definition: it comes less than half as far")
RATIO = Limit(1 / 3, "of the loss", "heuristic: most faults on digits and recall tasks end at 0.3 of the loss and less")
GAP = Limit(0.3, "of chance", "heuristic: twice what two orders of the batches differ by (sd 0.15 at most)")
LOST = Limit(0.1, "of chance", "what counts as learning, where the loss has risen since the probe's last step")
LEAST_FALL = 2 * CLEAR_FALL  # with the change: a training that hardly learns either proves nothing,
ALL = 1.0  # of chance: unless the change takes off as much as a constant prediction leaves
LATE = ("OPT001", "OPT005", "OPT008", "REG001")  # steps or a decay whose harm may show after the probe only
EARLY = ("OPT007",)  # the first steps, which a pair has seen: one whose remedy ends no lower costs nothing
# Rules that predict the end of training, or evaluation: a training that goes well anyway takes their warning back.
PREDICTIONS = (*LATE, *EARLY, "NORM004")


def comparable(m: Measurement) -> bool:
    """Whether the probe ran with the user's own data and optimizer, and its loss can be told from chance."""
    known = m.data.given and m.optimizer.given and m.loss_given and not any(n.what == "probe" for n in m.not_measured)
    losses = [x for x in m.probe.losses if math.isfinite(x)]
    return known and bool(losses) and m.probe.ended != "raised" and levelled(m.probe, m.chance) and min(losses) > 0


def failed(m: Measurement) -> bool:
    """Whether the probe did not learn."""
    return training_outcome(m) in ("stalls", "diverges")


def learns_slowly(m: Measurement) -> bool:
    """Whether the probe's result needs an explanation."""
    return relative_decrease(m.probe, m.chance) < SLOW.value


def may_fail_later(finding: Finding) -> bool:
    """Whether it is about steps or a decay whose harm may show after the probe only."""
    return finding.code in LATE


def reference(start: float, chance: float | None) -> float:
    """The better of the loss at the start and that of the best constant prediction."""
    return max(min(start, chance) if chance is not None and chance > 0 else start, 1e-12)


def relative(start: float, chance: float | None, loss: float) -> float:
    return loss / reference(start, chance)


def trains(cost: Cost) -> bool:
    """Whether the loss ends so low that no change could make a difference."""
    limit = LOST if cost.loss > cost.early else GAP
    return 0 <= relative(cost.start, cost.chance, cost.loss) < limit.value


def share_of_fall(cost: Cost) -> float:
    """The fall of the loss as a share of the fall with the change."""
    reached = 1 - relative(cost.start, cost.chance, cost.changed)
    return (1 - relative(cost.start, cost.chance, cost.loss)) / reached if reached > 0 else math.inf


def saved(cost: Cost) -> float:
    """By how much the change lowers the loss, in units of chance."""
    return 0.0 if cost.loss == cost.changed else relative(cost.start, cost.chance, cost.loss - cost.changed)


def is_costly(cost: Cost) -> bool:
    """Whether the training comes less than half as far as with the change, or ends at four times its loss and clearly above it.

    Where the loss has risen since the probe, less is enough: more time would not help.
    """
    proves = 1 - relative(cost.start, cost.chance, cost.changed) >= LEAST_FALL or saved(cost) >= ALL
    if not math.isfinite(cost.changed) or not proves:
        return False
    limit = LOST if cost.loss > cost.early else GAP
    much_higher = cost.changed <= RATIO.value * cost.loss and saved(cost) >= limit.value
    return share_of_fall(cost) < FAR.value or much_higher


def is_cause(cost: Cost) -> bool:
    """Whether the change alone makes a training learn that fails as it is."""
    return bool(cost.errors) and is_costly(cost) and 1 - relative(cost.start, cost.chance, cost.loss) < CLEAR_FALL


def costs_nothing(m: Measurement, code: str) -> bool:
    """Whether paired trainings looked for the cost of a rule's finding and found none."""
    followed = [c for c in m.costs if c.code == code]
    return bool(followed) and not any(map(is_costly, followed))


def with_cost(finding: Finding, m: Measurement, up_to: Severity) -> Finding:
    """The finding with its measured cost: a warning where that is high. An error stays one; none is added."""
    where = finding.code, finding.layers, finding.location
    cost = next((c for c in m.costs if (c.code, c.layers, c.location) == where), None)
    if cost is None or finding.severity == "error":
        return finding
    if not cost.change:
        return _costless(finding, cost)
    message = f"{finding.message}; {in_words(cost)}"
    if not is_costly(cost):
        return replace(finding, message=message, severity="info" if finding.code in EARLY and saved(cost) <= 0 else finding.severity)
    if up_to == "error" and is_cause(cost):
        confirmed = f"by the probe: it fails as it is, and learns {cost.change} alone"
        remedies = tuple(sorted(finding.remedies, key=lambda r: cost.change != f"with {r.name}"))  # the one that was tried leads
        evidence = (*finding.evidence, _evidence(cost))
        return replace(finding, severity="error", message=message, evidence=evidence, remedies=remedies, confirmed=confirmed)
    severity = "warning" if SEVERITIES.index(up_to) <= SEVERITIES.index("warning") else finding.severity
    return replace(finding, severity=severity, message=message, evidence=(*finding.evidence, _evidence(cost)))


def _costless(finding: Finding, cost: Cost) -> Finding:
    """A finding about a training that was seen to do well as it is."""
    if finding.code not in PREDICTIONS:
        return finding
    message = f"{finding.message}; even so the loss is {number(cost.loss)} after {cost.steps} steps"
    return replace(finding, severity="info", message=message)


def in_words(cost: Cost) -> str:
    """`costs: 0.47 instead of 1.89 after 300 steps (with forget-bias)`."""
    before = f", {number(cost.early)} before" if cost.loss > cost.early else ""
    what = "held-out loss " if cost.held_out else ""
    return f"costs: {what}{number(cost.changed)} instead of {number(cost.loss)} after {cost.steps} steps ({cost.change}{before})"


def _evidence(cost: Cost) -> Evidence:
    what = f"{'held-out ' if cost.held_out else ''}loss after {cost.steps} steps"
    if share_of_fall(cost) < FAR.value:
        return Evidence(f"fall of the {what}, of that {cost.change}", share_of_fall(cost), FAR.value, "<", "times")
    limit = LOST if cost.loss > cost.early else GAP
    return Evidence(f"{what} above that {cost.change}", saved(cost), limit.value, ">=", "of chance")
