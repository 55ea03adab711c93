import math
from collections.abc import Sequence
from statistics import median

from gradcheck.analysis.curves import ENDS, ends, level_error, lowest, noise
from gradcheck.analysis.wording import number, percent
from gradcheck.rules.log import NO_LOSS, REWARDS, at_step, led_by_rewards, look, recorded
from gradcheck.types.finding import Evidence
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule

FEWEST, GUESSED = 8, range(2, 11)  # values; classes: of more, any loss is near to a logarithm


@rule(
    "LOG004",
    up_to="warning",
    needs=("log",),
    limits={
        "points": Limit(50, "points", "heuristic: fewer may all be warm-up"),
        "steps": Limit(500, "steps of a watched run", "heuristic: likewise, where each step is a point"),
        "fall": Limit(0.02, "of the first level", "heuristic: no training of any use ends within 2 % of its start"),
        "still": Limit(
            1e-3, "of the first level", "measured: three public runs that learned nothing lost 0.007 to 0.03 % after their first fifth"
        ),
        "guessing": Limit(2e-3, "of ln(classes)", "measured: of two public runs that stayed at ln(2), 89 % and 78 % of the values"),
        "noise": Limit(3, "standard errors", "heuristic: of the level, a median over a tenth of the curve"),
        "late": Limit(0.02, "of the whole fall", "heuristic: what the second half of the run brought"),
    },
)
def log_loss_flat(m: Measurement, limits: Limits) -> Verdict:
    """The logged loss does not fall, or not any more.

    ## What it finds
    Runs whose loss ends where it began; and, as advice, runs whose second half brought next to nothing.

    ## Why it matters
    A loss that never falls means that nothing is learned: the gradient does not arrive, the rate is far too low or too high, or
    targets and outputs do not belong together. Half a run without any gain is half of the computing time for nothing.

    ## How it is measured
    Levels are medians over a tenth of the curve. A loss that stays at ln(k) is that of guessing among k classes: of cross entropy, and at
    ln(2) of binary cross entropy.

    ## Limits and their sources
    `fall` (2 % of the first level): a warning when the fall stays below it and, after the first fifth of the curve, below `still` (0.1 %)
    or `noise` (3 standard errors of a level). `guessing` (0.2 %): a warning
    when more than half of eight or more values, and the median of the second half, lie that near to ln(k), with k of 2 to 10. `late`
    (2 % of the whole fall): advice when the second half of the run brought no more. Logs of fewer than `points` (50) values are
    otherwise not judged, nor are watched runs of fewer than `steps` (500).

    ## When to ignore it
    When the loss need not fall: adversaries, reinforcement learning; a log that begins late in a run, or after a resumption. Of a run that
    is watched it is advice: it may have been resumed.

    ## Example
    ```python
    for x, y in loader:
        loss(model(x), y).backward()
    ```

    ## Use instead
    ```python
    for x, y in loader:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    ```

    ## References
    Karpathy 2019, A recipe for training neural networks.
    """
    log = recorded(m)
    curve = required(log.loss, NO_LOSS).finite
    if led_by_rewards(log):
        return not_applicable(REWARDS)
    classes = _guessed(curve.values, limits["guessing"]) if m.log is not None else 0
    if classes:
        level = median(curve.values[len(curve.values) // 2 :])
        message = (
            f"the loss ({curve.name}) stays at {number(level)}: guessing among {classes} classes costs ln({classes}) = "
            f"{number(math.log(classes))}, and nothing better was learned"
        )
        evidence = Evidence("loss over that of guessing", level / math.log(classes), 1 - limits["guessing"], ">")
        return [
            found("warning", message, evidence=evidence, remedies=look(m, "find out whether a gradient arrives, and what the steps change"))
        ]
    if len(curve.values) < limits["points" if m.log is not None else "steps"]:
        return not_measured(f"{len(curve.values)} values of the loss are too few")
    first, best = ends(curve.values)[0], lowest(curve)[1]
    fall, error = first - best, noise(curve.values) / math.sqrt(ENDS * len(curve.values))
    rest = curve.values[len(curve.values) // 5 :]
    then, last = ends(rest)
    stays = then - min(then, best) < limits["still"] * abs(first) or then - last < limits["noise"] * level_error(rest)
    if fall < limits["fall"] * abs(first) and stays:
        message = (
            f"the loss ({curve.name}) does not fall: it begins at {number(first)}, and its lowest level is {number(best)} "
            f"({percent(fall / abs(first) if first else 0.0)} lower, limit {percent(limits['fall'])})"
        )
        evidence = Evidence("fall of the loss", fall, limits["fall"] * abs(first), "<")
        remedies = look(m, "find out whether a gradient arrives, and what the steps change")
        return [found("warning" if m.log is not None else "info", message, evidence=evidence, remedies=remedies)]
    middle = len(curve.values) // 2
    half = lowest(type(curve)(curve.name, curve.steps[:middle], curve.values[:middle]))[1]
    late = half - best
    if late >= limits["late"] * fall or late > limits["noise"] * error:
        return []
    message = (
        f"the second half of the run, from {at_step(curve.steps[middle])} on, lowers the loss ({curve.name}) by {number(max(late, 0.0))}, "
        f"{percent(max(late, 0.0) / fall)} of the whole fall to {number(best)} (limit {percent(limits['late'])})"
    )
    evidence = Evidence("fall in the second half", late, limits["late"] * fall, "<")
    return [found("info", message, evidence=evidence, remedies=look(m, "see whether the rate, the data or the model sets the floor"))]


def _guessed(values: Sequence[float], within: float) -> int:
    """Among how many classes the loss is that of guessing, most of the time and in the second half; 0 if it is not."""
    last = median(values[len(values) // 2 :]) if len(values) >= FEWEST else 0.0
    classes = next((k for k in GUESSED if abs(last / math.log(k) - 1) < within), 0)
    near = sum(abs(v / math.log(classes) - 1) < within for v in values) if classes else 0
    return classes if 2 * near > len(values) else 0
