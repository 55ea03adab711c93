from statistics import median

from gradcheck.analysis.curves import changed_at_once
from gradcheck.analysis.wording import number, quoted
from gradcheck.rules.watch import NOT_WATCHED, others
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.gauges import Gauge
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

SOON = 8  # steps in which a spike follows a lag: arXiv 2304.13013


@rule(
    "WATCH001",
    up_to="warning",
    needs=("gauges",),
    limits={
        "lag": Limit(
            8,
            "root mean of g^2 / v",
            "measured: at most 5.3 in any step and tensor of 12 healthy runs, 6.4 in Q-learning; 9 to 24 where the data change at once",
        ),
        "lasting": Limit(2.3, "root mean of g^2 / v", "arXiv 2304.13013; measured: healthy GPTs stay below, small nets exceed it singly"),
        "looks": Limit(2, "measured steps", "measured: up to 0.8 % of the steps of healthy runs exceed 2.3; no tensor departs so twice"),
    },
    explains=("WATCH002", "LOG003"),
)
def second_moment_lags(m: Measurement, limits: Limits) -> Verdict:
    """Adam's second moment is far smaller than the gradients that it is to scale.

    ## What it finds
    Tensors whose gradient, in a step that was looked at, is several times as large as the average that Adam divides it by.

    ## Why it matters
    The step is too long by that factor, in this tensor alone. Loss spikes follow 1 to 8 steps after the second moment was
    underestimated, as a learning signal comes back that had been small for a long time. The loss does not show it before.

    ## How it is measured
    After the optimizer's step, on up to 1024 entries of each tensor: the root mean of g^2 / v, with v corrected for its bias
    and no smaller than epsilon squared. About 1 where v follows. This is done at the measured steps, and at those in which the
    loss jumps, or the norm that a clipping function returns. A departure is a value 10 standard deviations above the tensor's
    own history.

    ## Limits and their sources
    `lag` (8) in a single step, or `lasting` (2.3) in `looks` (2) measured steps in a row where the tensor departs from its own history.
    It is advice where the loss had jumped before that step was taken, and either stays up (`log-loss-spikes` says that the data or the
    loss changed) or the tensor is in line again within 8 steps: measured in a mixture of experts, the loss was back at once, with the
    long step and without it. Of 12 healthy runs of 2000 steps each (MLPs, convolutional nets, transformers, LSTM, GAN, autoencoder)
    those of GPTs stay below 2.3 in each step and tensor, as in the paper; small nets near zero loss reach 5.3, Q-learning 6.4 as its
    targets are renewed. Where the data change at once it is 9 to 24; by step t it can be the root of t at most.

    ## When to ignore it
    When the data change at that step on purpose.

    ## Example
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999))
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    ```

    ## References
    Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language models (arXiv 2304.13013).
    """
    known = [g for g in m.gauges if g.quantity == "second-moment-lag"]
    if not known:
        return not_applicable(NOT_WATCHED if not m.probe.live else "the optimizer keeps no second moment that can be read")
    bad = [g for g in known if _lags(g, limits)]
    return [_finding(m, bad, limits)] if bad else []


def _lags(g: Gauge, limits: Limits) -> bool:
    d = g.departure
    return _largest(g)[0] > limits["lag"] or (d is not None and d.value > limits["lasting"] and d.lasted >= limits["looks"])


def _jumped(m: Measurement, g: Gauge, limits: Limits) -> bool:
    """Whether the loss was high already in the step in which it lags, and the next look, soon after, finds it in line again."""
    step = _largest(g)[1]
    after = next(((s, v) for s, v in zip(g.steps, g.values, strict=True) if s > step), None)
    over = after is not None and after[0] - step <= SOON and after[1] <= limits["lasting"]
    return over and any(s.what == "loss" and s.step == step for s in m.spikes)


def _changed(m: Measurement, step: int) -> bool:
    changed = changed_at_once(m)
    return changed is not None and 0 <= step - changed.step <= SOON


def _largest(g: Gauge) -> tuple[float, int]:
    """Value and step."""
    d = g.departure
    return max((g.peak, g.peak_step), (d.value, d.step) if d is not None else (0.0, 0))


def _finding(m: Measurement, bad: list[Gauge], limits: Limits) -> Finding:
    worst = max(bad, key=_largest)
    lag, step = _largest(worst)
    limit = limits["lag"] if lag > limits["lag"] else limits["lasting"]
    before = [v for s, v in zip(worst.steps, worst.values, strict=True) if s < step]
    usual = worst.departure.level if worst.departure is not None else median(before or (1.0,))
    beta = m.optimizer.betas[1] if len(m.optimizer.betas) > 1 else 0.999
    message = (
        f"at step {step} the gradient of {quoted(worst.name)} is {number(lag)} times what Adam's second moment expects (limit "
        f"{number(limit)}; {number(usual)} before{others(len(bad) - 1)}): its steps are too long by that; "
    )
    changed = _changed(m, step)
    jumped = changed or all(_jumped(m, g, limits) for g in bad)
    message += (
        "but the loss had jumped before it was taken, for good: other data, or another loss"
        if changed
        else "but the loss had jumped before it was taken, and the gradient is in line again: a batch unlike the others"
        if jumped
        else "a spike of the loss follows 1 to 8 steps later"
    )
    return found(
        "info" if jumped else "warning",
        message,
        layers=list(dict.fromkeys(g.layer for g in bad)),
        location=worst.site,
        evidence=[
            Evidence("root mean of g^2 over the second moment", lag, limit, ">", "", worst.name),
            Evidence("the same before", usual, None, "=", "", worst.name),
        ],
        remedies=Remedy("shorter-memory", f"lower beta2 from {number(beta, 4)} to 0.95, and clip the norm of the gradients"),
    )
