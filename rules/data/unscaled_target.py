import math
from dataclasses import dataclass

from gradcheck.analysis.convergence import on_its_way, start_and_end, training_outcome
from gradcheck.analysis.wording import SYNTHETIC, learns_clearly, number
from gradcheck.rules.outputs import REGRESSION_LOSSES
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

MET = (0.1, 10.0)  # spread of such an output, in the targets' standard deviations
FEWEST_TARGETS = 8
CLEARLY = 0.9  # of the loss of a constant prediction


@dataclass(frozen=True)
class Targets:
    """What a regression loss compares in the first step."""

    function: str
    site: Location | None
    count: int
    output_mean: float
    output_std: float
    mean: float
    std: float

    @property
    def met(self) -> bool:
        """The output has the targets' mean and scale from the start: the model scales it itself."""
        return abs(self.output_mean - self.mean) <= self.std and MET[0] * self.std <= self.output_std <= MET[1] * self.std


@rule(
    "DATA003",
    up_to="warning",
    needs=("losses", "data", "probe"),
    limits={
        "largest_std": Limit(10.0, "", "heuristic: the first gradients of a squared error grow with it"),
        "smallest_std": Limit(0.01, "", "heuristic: squared errors of 1e-4"),
        "offset": Limit(3.0, "times the std", "heuristic"),
        "large_mean": Limit(3.0, "", "heuristic: smaller offsets are learned by the output's bias within a few hundred steps"),
    },
    explains=("LOSS003", "CLIP001", "GRAD005"),
)
def unscaled_target(m: Measurement, limits: Limits) -> Verdict:
    """The targets of a regression are far from zero mean and unit scale.

    ## What it finds
    Regression targets in physical units: a standard deviation in the tens or of thousandths, or a mean far from 0.

    ## Why it matters
    An untrained output is about 0 with spread 1, and first has to travel to the targets: Adam at 0.001 moves
    a bias by 0.001 a step, so a mean of 152 is 152,000 steps away, and the gradients of a squared error grow with the targets.

    ## How it is measured
    Mean and standard deviation of targets and outputs in the first step, at regression losses of torch and at differences of an output
    and a tensor of the batch.

    ## Limits and their sources
    A standard deviation above `largest-std` 10 or below `smallest-std` 0.01, or a mean beyond `offset` 3 standard deviations and
    `large-mean` 3: a warning, advice when the probe learns clearly. The offset alone is advice. Heuristics. Outputs that have the targets'
    mean and scale from the start are exempt: such a model scales them itself. So are scripts that train a policy: its returns are no data.

    ## When to ignore it
    When the output reaches the targets later than the probe ends, and you can wait.

    ## Example
    ```python
    loss = F.mse_loss(model(x), price)  # mean 250 000
    ```

    ## Use instead
    ```python
    loss = F.mse_loss(model(x), (price - price_mean) / price_std)
    ```

    ## References
    LeCun et al., "Efficient BackProp", 1998, sections 4.3 and 4.5.
    """
    if not m.data.given:
        return not_applicable(SYNTHETIC)
    if m.loop is not None and m.loop.rewarded:
        return not_applicable("the script trains a policy: what its values are compared with is earned, and no data")
    targets = [t for t in _targets(m) if t.count >= FEWEST_TARGETS and t.std > 0 and math.isfinite(t.mean) and math.isfinite(t.std)]
    if not targets:
        return not_applicable("no regression loss with several different targets")
    findings: dict[Location | None, Finding] = {}
    for t in targets:
        finding = None if t.met else _unscaled_target(m, t, limits)
        if finding is not None:
            findings.setdefault(t.site, finding)
    return list(findings.values())


def _targets(m: Measurement) -> list[Targets]:
    by_torch = [
        Targets(c.function, c.site, math.prod(c.target_shape), c.input_mean, c.input_std, c.target_mean, c.target_std)
        for c in m.losses
        if c.function in REGRESSION_LOSSES and not c.target_made and c.target_mean is not None and c.target_std is not None
    ]
    by_hand = [
        Targets("the loss", d.site, math.prod(d.shape), d.output_mean, d.output_std, d.target_mean, d.target_std) for d in m.differences
    ]
    return by_torch + by_hand


def _below_chance(m: Measurement, t: Targets) -> bool:
    """Whether the probe got below the loss of the best constant prediction, for a loss whose formula is not known.

    With targets of standard deviation s the squared error falls from E = (difference of the means)^2 + std(output)^2 + s^2 to s^2,
    and a loss of power 1 from about sqrt(E) to s; the first loss tells which of the two it is.
    """
    start, end, _ = start_and_end(m.probe)
    error = (t.output_mean - t.mean) ** 2 + t.output_std**2 + t.std**2
    if not (start > 0 and end > 0 and math.isfinite(end)):
        return end <= 0
    squared = abs(math.log(start / error)) < abs(math.log(start / error**0.5))
    return end < CLEARLY * start * (t.std**2 / error) ** (1.0 if squared else 0.5)


def _unscaled_target(m: Measurement, t: Targets, limits: Limits) -> Finding | None:
    offset = abs(t.mean) / t.std
    arrived = learns_clearly(m) and (m.chance is not None or _below_chance(m, t))
    unknown = training_outcome(m) == "unknown" and not on_its_way(m.probe, m.chance)
    severity: Severity = "info" if arrived or unknown else "warning"
    if t.std > limits["largest_std"]:
        what = f"their standard deviation is {number(t.std)} (limit {number(limits['largest_std'])})"
        evidence = Evidence("standard deviation of the targets", t.std, limits["largest_std"], ">")
    elif t.std < limits["smallest_std"]:
        what = f"their standard deviation is {number(t.std)} (limit {number(limits['smallest_std'])})"
        evidence = Evidence("standard deviation of the targets", t.std, limits["smallest_std"], "<")
    elif offset > limits["offset"]:
        what = f"their mean {number(t.mean)} is {number(offset)} standard deviations from 0 (limit {number(limits['offset'])})"
        evidence = Evidence("mean of the targets over their standard deviation", offset, limits["offset"], ">")
        severity = severity if abs(t.mean) > limits["large_mean"] else "info"
    else:
        return None
    return found(
        severity,
        f"the targets of {t.function} are unscaled: {what}; the output starts with mean {number(t.output_mean)} and standard "
        f"deviation {number(t.output_std)}, and has to get there before it learns anything from the inputs",
        location=t.site,
        evidence=(
            evidence,
            Evidence("mean of the targets", t.mean, None, "="),
            Evidence("mean of the outputs before training", t.output_mean, None, "="),
        ),
        remedies=(
            Remedy("standardize-target", f"subtract {number(t.mean)} from the targets and divide them by {number(t.std)}", "safe"),
            Remedy("prior-bias", f"or at least set the output's bias to the targets' mean {number(t.mean)}", "safe"),
        ),
    )
