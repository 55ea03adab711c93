from dataclasses import replace

from gradcheck.analysis.convergence import creeps, learned_later, on_its_way, relative_decrease, steps_to_learn, training_outcome
from gradcheck.analysis.update_sizes import update_ratio
from gradcheck.analysis.wording import number, run_in_words
from gradcheck.rules.optimization import RATIOS, best_rate, not_judged, rate_finding, ratio_finding
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, not_applicable, not_measured, rule
from gradcheck.types.training import SAME_RATE_LONGER, Run


def low_severity(m: Measurement, ratio: float | None, higher: Run, later: Run | None, limits: Limits) -> Severity:
    """An error when the updates are small too, and the loss hardly moved. A higher rate got clearly further: it was chosen so.

    A rate of usual size that learned `later` is only slow; so may be one whose longer run ended before `higher` foretold.
    """
    if m.pretrained or (later is not None and ratio is not None and ratio >= limits["usual_ratio"]):
        return "info"
    if later is not None:
        return "warning"
    small = ratio is None or ratio < limits["update_ratio"]
    crawls = relative_decrease(m.probe, m.chance) >= limits["crawl"]
    cut_off = [r for r in m.experiments if r.name == SAME_RATE_LONGER and r.ended == "budget"]
    least = max(len(m.probe.losses) + 1, steps_to_learn(higher, m.chance))
    untold = any(len(r.losses) < least or on_its_way(r, m.chance) for r in cut_off)
    return "error" if small and not crawls and not untold else "warning"


def _falls(m: Measurement) -> bool:
    """Whether the script's schedule, below the rate that it works from, only takes the rate down: it multiplies, and was given a rate."""
    rates = (m.loop.rates if m.loop is not None else None) or (0.0,)
    return rates[-1] < rates[0] == max(rates)


def _divided(finding: Finding, m: Measurement, limit: float) -> Finding:
    """The same, blaming a loss that is a small part of its mean over the batch: the gradient is as much smaller."""
    call = m.losses[0] if len(m.losses) == 1 and not m.optimizer.adaptive else None
    share = (call.weight_in_total or 0.0) * call.summed if call is not None else 0.0
    if call is None or not 0 < share < limit:
        return finding
    text = f"divide by the batch's size only: the loss is the mean of {call.function} over it, divided by {number(1 / share)}"
    return replace(
        finding,
        message=f"{finding.message}. The loss is {number(share)} of the mean over the batch (limit {number(limit)}), as is its gradient",
        location=call.site or finding.location,
        evidence=(*finding.evidence, Evidence("loss that is trained on over the mean over the batch", share, limit, "<")),
        remedies=(Remedy("check-arguments", text, "advice"), *finding.remedies),
    )


@rule(
    "OPT002",
    up_to="error",
    needs=("parameters", "probe"),
    limits={
        "update_ratio": Limit(0.01, "of the weight", f"{RATIOS}: best at 0.015 to 0.02; random workloads of benchmarks/predictions.py"),
        "crawl": Limit(0.06, "of the loss", "random workloads: no failing one that this rule found had fallen by more than 4 %"),
        "usual_ratio": Limit(0.001, "of the weight", "usual in long trainings (CS231n)"),
        "update_ratio_alone": Limit(1e-5, "of the weight", "lower bound for long trainings, a hundredth of the usual 0.001 (CS231n)"),
        "share": Limit(0.1, "of the mean over the batch", "heuristic: weights of losses among others are rarely smaller"),
        "fall": Limit(0.05, "of the loss", "heuristic: a low ratio counts only with a flat loss"),
    },
    explains=("LOSS005",),
)
def learning_rate_too_low(m: Measurement, limits: Limits) -> Verdict:
    """The optimizer's steps are too small to get anywhere.

    ## What it finds
    Rates at which the loss stays where it was while a higher one learns, and updates too small for a training of usual length.

    ## Why it matters
    The training runs, costs its full time, and ends near the random start.

    ## How it is measured
    A short training with your optimizer; when it stalls, the same start is trained again at lower and higher rates. The size of an
    update is ||update|| / ||weight||, the median over weight matrices and the measured steps 3 to 20. Rates that a schedule is
    still warming up are not judged; those that it only lowers are.

    ## Limits and their sources
    An error: the probe stalls for three times its steps, or comes less than a third of the way down to chance in them, the best
    of the other rates that learn is a higher one, whose loss falls further by 10 % of it, and updates are below `update-ratio` 1 %
    of the weight. Else, when the loss crawls down by `crawl` 6 %, and when there was no time for more steps, a warning. A rate that learns
    within ten times the probe's steps is a warning, and advice where its updates are `usual-ratio` 0.1 % of the weight or
    more. Without experiments: a warning below `update-ratio-alone` 0.00001, when the loss fell by less than `fall` 5 %.
    An optimizer that gradcheck assumed, and a model that was trained before (fine-tuning rates are low),
    get advice only. Where the one loss of a training without an adaptive optimizer is less than `share` 10 % of its mean over the
    batch, divided by the size of the data set, say, that is named, and its line.

    ## When to ignore it
    When the training is much longer than the probe and its rate is that low on purpose.

    ## Example
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ```

    ## References
    Smith 2017, Cyclical Learning Rates; CS231n, Learning: ratio of weights to updates.
    """
    if reason := not_judged(m):
        return not_measured(reason)
    if m.optimizer.warming_up and not _falls(m):
        return not_applicable("the rate is still being warmed up")
    outcome, ratio = training_outcome(m), update_ratio(m)
    run = best_rate(m, higher=True) if outcome == "stalls" or creeps(m.probe, m.chance) else None
    if run is not None:
        later = learned_later(m)
        more = [Evidence("steps in which this rate learns", len(later.losses), len(m.probe.losses), ">")] if later is not None else ()
        finding = rate_finding(m, run, low_severity(m, ratio, run, later, limits), "low", "raise-learning-rate", more)
        if later is not None:
            finding = replace(finding, message=f"{finding.message}; at its own, {run_in_words(later)}")
        return [_divided(finding, m, limits["share"])]
    flat = outcome != "learns" and relative_decrease(m.probe, m.chance) < limits["fall"]
    if m.experiments or m.pretrained or ratio is None or ratio >= limits["update_ratio_alone"] or not flat or outcome == "diverges":
        return []
    return [ratio_finding(m, ratio, limits["update_ratio_alone"], "warning", high=False)]
