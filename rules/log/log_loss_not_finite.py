import math

from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.rules.log import at_step, finished, look
from gradcheck.types.finding import Evidence, Finding
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, rule
from gradcheck.types.training import LogColumn


@rule(
    "LOG001",
    up_to="error",
    needs=("log",),
    limits={
        "points": Limit(3, "points at the end", "heuristic: a loss scaler skips one or two steps in a row"),
        "share": Limit(0.02, "of the points", "heuristic: float16 training overflows now and then while its scale grows"),
    },
    explains=("LOG002", "LOG003", "LOG004", "LOG007"),
)
def log_loss_not_finite(m: Measurement, limits: Limits) -> Verdict:
    """The logged loss, or the norm of the gradient, is NaN or infinite.

    ## What it finds
    Logs in which the loss or the gradient norm becomes NaN or infinite and stays so to the end, or is so again and again.

    ## Why it matters
    After one update by a gradient that is not finite all weights are NaN: what was trained from there on is worthless.

    ## How it is measured
    From the columns of the log. Some trainers replace a loss that is not finite by the mean of the others (Transformers:
    `logging_nan_inf_filter`): the gradient norm still tells.

    ## Limits and their sources
    `points` (3): an error when the last three logged values are not finite, or the very last one of a loss. `share` (2 %): a
    warning when more values than these are not finite and the run recovers each time.

    ## When to ignore it
    With a loss scaler, single steps with an infinite gradient are skipped by design, and not reported.

    ## Example
    ```python
    loss = -torch.log(p).mean()
    ```

    ## Use instead
    ```python
    loss = torch.nn.functional.cross_entropy(logits, target)
    ```

    ## References
    Micikevicius et al. 2018, Mixed precision training; `gradcheck rule non-finite`.
    """
    log = finished(m)
    named = (("the loss", log.loss), ("the evaluation loss", log.evaluation), ("the norm of the gradient", log.norm))
    findings = (_finding(m, what, curve, limits) for what, curve in named if curve is not None and curve.values)
    return [f for f in findings if f is not None]


def _finding(m: Measurement, what: str, curve: LogColumn, limits: Limits) -> Finding | None:
    broken = [not math.isfinite(v) for v in curve.values]
    trailing = next((i for i, bad in enumerate(reversed(broken)) if not bad), len(broken))
    least = limits["points"] if "norm" in what else 1
    if trailing >= least:
        step = curve.steps[-trailing]
        kind = "NaN" if math.isnan(curve.values[-trailing]) else "infinite"
        message = f"{what} ({curve.name}) is {kind} from {at_step(step)} on to the end, {trailing} of {len(broken)} logged values"
        evidence = Evidence("values that are not finite, at the end", trailing, least, ">=")
        remedy = look(m, f"find the operation that makes it, in the steps before {at_step(step)}")
        return found("error", message, evidence=evidence, remedies=remedy, confirmed=BY_VALUE)
    share = sum(broken) / len(broken)
    if share <= limits["share"]:
        return None
    limit = limits["share"]
    first = curve.steps[broken.index(True)]
    message = (
        f"{what} ({curve.name}) is not finite in {sum(broken)} of {len(broken)} logged values ({percent(share)}, limit {percent(limit)}), "
        f"first at {at_step(first)}, and finite again each time: so many steps are lost"
    )
    evidence = Evidence("share of values that are not finite", share, limit, ">")
    return found("warning", message, evidence=evidence, remedies=look(m, f"look at the steps around {number(first)}"))
