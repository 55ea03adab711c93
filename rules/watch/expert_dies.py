from statistics import fmean

from gradcheck.analysis.wording import number, percent, quoted
from gradcheck.rules.watch import NOT_WATCHED
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.gauges import Gauge
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.types.structure import Router

FEWEST_CHOICES = 50  # for each expert, on average, as router-collapse


@rule(
    "WATCH005",
    up_to="warning",
    needs=("gauges", "routing"),
    limits={
        "dead": Limit(0.02, "of an equal share", "heuristic: of 50 choices for each expert one"),
        "alive": Limit(0.2, "of an equal share", "heuristic: it had work once; measured: balanced routers give each expert 0.5 or more"),
        "looks": Limit(3, "measured steps", "heuristic: a batch may have nothing for an expert"),
    },
)
def expert_dies(m: Measurement, limits: Limits) -> Verdict:
    """An expert that used to get tokens gets none any more.

    ## What it finds
    Single experts whose share of the choices falls to nothing while the run goes on.

    ## Why it matters
    Without tokens an expert has no gradient, and nothing brings it back: its weights are lost for the rest of the run. The loss hardly
    shows it. `router-collapse` speaks when half of the experts, or nearly all tokens, are concerned; this is how it begins.

    ## How it is measured
    The choices in the measured steps, from the top-k, argmax or maximum over the scores of the router.

    ## Limits and their sources
    `dead`: below 2 % of an equal share in each of the last `looks` (3) measured steps, after `alive` (20 % of it) on average over a quarter
    of the measured steps or more. No judgement with fewer than 50 choices for each expert.

    ## When to ignore it
    When the data change on purpose, and no longer hold what the expert was for.

    ## Example
    ```python
    loss = task_loss
    ```

    ## Use instead
    ```python
    load = F.one_hot(choice, experts).float().mean(0)
    loss = task_loss + 0.01 * experts * (load * probabilities.mean(0)).sum()
    ```

    ## References
    Fedus, Zoph and Shazeer 2021, Switch transformers.
    """
    if not m.probe.live:
        return not_applicable(NOT_WATCHED)
    if not m.routers:
        return not_applicable("no module chooses among experts")
    enough = {r.layer: r for r in m.routers if r.tokens * r.chosen >= FEWEST_CHOICES * r.experts}
    if not enough:
        return not_measured(f"fewer than {FEWEST_CHOICES} choices for each expert")
    loads = [g for g in m.gauges if g.quantity == "expert-load" and g.layer in enough]
    dead = [g for g in loads if _died(g, enough[g.layer], limits)]
    return [_finding([g for g in dead if g.layer == layer], enough[layer], limits) for layer in dict.fromkeys(g.layer for g in dead)]


def _died(g: Gauge, r: Router, limits: Limits) -> bool:
    looks, equal = int(limits["looks"]), 1 / r.experts
    before = g.values[:-looks]
    quarter = max(looks, len(g.values) // 4)
    if len(before) < quarter or max(g.values[-looks:]) > limits["dead"] * equal:
        return False
    return max(fmean(before[i : i + quarter]) for i in range(len(before) - quarter + 1)) > limits["alive"] * equal


def _finding(dead: list[Gauge], r: Router, limits: Limits) -> Finding:
    worst, bound = dead[0], limits["dead"] / r.experts
    since = next(s for s in worst.steps if all(v <= bound for t, v in zip(worst.steps, worst.values, strict=True) if t >= s))
    names = " and ".join(quoted(g.name) for g in dead[:3])
    message = (
        f"{names} {'gets' if len(dead) == 1 else 'get'} no tokens any more, from step {since} on or shortly before "
        f"({percent(worst.values[-1])} of the choices, limit {percent(bound)}; {percent(worst.peak)} at step {worst.peak_step}): no "
        "gradient brings it back, and the loss does not show it"
    )
    text = "add a balancing term to the loss, 0.01 * experts * (share of the tokens * mean probability of each expert).sum()"
    return found(
        "warning",
        message,
        layers=[r.layer] if r.layer else [],
        location=worst.site or r.site,
        evidence=[
            Evidence("share of the choices", worst.values[-1], bound, "<=", "", worst.name),
            Evidence("entropy of the router", r.entropy, None, "=", f"of log {number(r.experts)}", r.layer),
        ],
        remedies=Remedy("balance-experts", text),
    )
