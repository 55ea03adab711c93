from statistics import median

from gradcheck.analysis.curves import ends
from gradcheck.analysis.wording import number, percent
from gradcheck.rules.log import at_step, look, recorded
from gradcheck.types.finding import Evidence, Finding
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule
from gradcheck.types.training import LogColumn


@rule(
    "LOG007",
    up_to="warning",
    needs=("log",),
    limits={
        "points": Limit(20, "points", "heuristic: a tenth of them is two at least"),
        "growth": Limit(30, "times", "heuristic: norms of healthy runs move within a factor of ten after the first steps"),
        "clipped": Limit(0.9, "of the points", "heuristic: clipping is meant for outliers"),
    },
)
def log_gradient_norms(m: Measurement, limits: Limits) -> Verdict:
    """The logged norm of the gradient grows, is zero, or lies above the clipping threshold nearly always.

    ## What it finds
    Norms that end far above those of the first half; norms that are zero at the end; and, as advice, norms that nearly all exceed the
    threshold of the clipping.

    ## Why it matters
    A norm that grows precedes a divergence. A norm of zero means that nothing is learned any more. Where nearly each gradient
    is clipped, the threshold sets the size of the steps, and not the gradient.

    ## How it is measured
    Medians over a tenth of the curve: the last one against that of the first half. The threshold comes from the settings that
    the log holds, or from `--clip`.

    ## Limits and their sources
    `growth` (30 times), `clipped` (90 % of the points above the threshold), of `points` (20) values or more.

    ## When to ignore it
    Clipping each gradient is a recipe of its own (normalized steps), with adaptive optimizers above all.

    ## Example
    ```python
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    ```

    ## Use instead
    ```python
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    ```

    ## References
    Pascanu et al. 2013, On the difficulty of training recurrent neural networks.
    """
    log = recorded(m)
    curve = required(log.norm, not_applicable("the log has no norm of the gradient")).finite
    if len(curve.values) < limits["points"]:
        return not_measured(f"{len(curve.values)} values of the norm are too few")
    findings = (_course(m, curve, limits), _clipped(m, curve, log.clip, limits))
    return [f for f in findings if f is not None]


def _course(m: Measurement, curve: LogColumn, limits: Limits) -> Finding | None:
    usual, last = median(curve.values[: len(curve.values) // 2]), ends(curve.values)[1]
    if usual <= 0:
        return None
    if last == 0:
        message = f"the norm of the gradient ({curve.name}) is 0 at the end, after {number(usual)}: nothing is learned any more"
        evidence = Evidence("norm at the end", 0.0, 0.0, "=")
        return found("warning", message, evidence=evidence, remedies=look(m, "find where the gradient is lost"))
    if not last > limits["growth"] * usual:
        return None
    since = next(s for s, v in zip(curve.steps, curve.values, strict=True) if v > limits["growth"] * usual)
    message = (
        f"the norm of the gradient ({curve.name}) grows to {number(last)}, {number(last / usual)} times that of the first half of the run "
        f"(limit {number(limits['growth'])}), beginning at {at_step(since)}"
    )
    evidence = Evidence("norm at the end over that of the first half", last / usual, limits["growth"], ">", "times")
    return found("warning", message, evidence=evidence, remedies=look(m, f"see which layers it comes from, at {at_step(since)}"))


def _clipped(m: Measurement, curve: LogColumn, clip: float | None, limits: Limits) -> Finding | None:
    if clip is None:
        return None
    share = sum(v > clip for v in curve.values) / len(curve.values)
    if share <= limits["clipped"]:
        return None
    message = (
        f"{percent(share)} of the gradients ({curve.name}, median {number(median(curve.values))}) exceed the threshold of {number(clip)} "
        f"that they are clipped to (limit {percent(limits['clipped'])}): the threshold sets the size of the steps"
    )
    evidence = Evidence("share of gradients that are clipped", share, limits["clipped"], ">")
    return found("info", message, evidence=evidence, remedies=look(m, "compare a higher threshold, or a lower rate"))
