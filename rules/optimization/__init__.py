"""Rules about the optimizer's settings and its rate.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

from collections.abc import Sequence

from gradcheck.analysis.convergence import CLEAR_FALL, LEAST_FALL, PATIENCE, experiment_outcome, no_lower, relative_decrease
from gradcheck.analysis.update_sizes import TARGET_RATIO, update_ratio
from gradcheck.analysis.wording import number, optimizer_in_words, percent, run_in_words
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import found
from gradcheck.types.training import Run

RULES = (
    "learning_rate_too_high learning_rate_too_low adam_epsilon coupled_weight_decay warmup_missing batch_size "
    "past_critical_rate momentum_too_long"
).split()

RATIOS = "12 networks x 3 optimizers x 11 rates, 150 steps"


def best_rate(m: Measurement, *, higher: bool) -> Run | None:
    """The experiment at a higher, or lower, rate that learned best, clearly better than the probe; None unless it beat the other side's.
    Of one that was cut off, a fall beyond noise is enough."""
    mine, whole = relative_decrease(m.probe, m.chance), len(m.probe.losses) >= PATIENCE
    rated = [r for r in m.experiments if r.rate_factor is not None and r.rate_factor != 1 and experiment_outcome(r, m) == "learns"]
    clear = lambda r: relative_decrease(r, m.chance) >= mine + (LEAST_FALL if whole and r.ended == "budget" else CLEAR_FALL)  # noqa: E731
    learned = [r for r in rated if r.ended == "learned" or (clear(r) and not no_lower(r, m.probe, m.chance))]
    best = max(learned, key=lambda r: relative_decrease(r, m.chance), default=None)
    return best if best is not None and ((best.rate_factor or 1) > 1) == higher else None


def at_most_info(m: Measurement, severity: Severity) -> Severity:
    """Findings about an optimizer that the user did not choose are advice."""
    return severity if m.optimizer.given else "info"


def rate_finding(m: Measurement, run: Run, severity: Severity, what: str, name: str, more: Sequence[Evidence] = ()) -> Finding:
    """The user's rate fails and `run` at another rate does better; `more` is further evidence."""
    rate = run.lr if run.lr is not None else m.optimizer.lr * (run.rate_factor or 1)
    severity = at_most_info(m, severity)
    other = f"at {number(rate)} (x {number(run.rate_factor or 1)})"
    message = (
        f"learning rate is too {what} for this model: with {optimizer_in_words(m)}, {run_in_words(m.probe)}; {other}, {run_in_words(run)}"
    )
    ratio = update_ratio(m)
    evidence = [Evidence("fall of the loss in the probe", relative_decrease(m.probe, m.chance), CLEAR_FALL, "<", "of the loss")]
    if ratio is not None:
        evidence.append(
            Evidence("update per step, median over weights", ratio, TARGET_RATIO, ">" if what == "high" else "<", "of the weight")
        )
    evidence += more
    remedies = [Remedy(name, f"set the rate to {number(rate)}", "safe")]
    if what == "high":
        remedies.append(Remedy("warm-up", f"or raise the rate from {number(rate / 10)} to its value over the first steps", "advice"))
    confirmed = f"by the probe: the same optimizer {other}: {run_in_words(run)}"
    return found(severity, message, location=m.optimizer.site, evidence=evidence, remedies=remedies, confirmed=confirmed)


def ratio_finding(m: Measurement, ratio: float, limit: float, severity: Severity, *, high: bool, more: Sequence[Evidence] = ()) -> Finding:
    """`more`: further evidence; of updates that are too large, how the weights have grown."""
    wanted = m.optimizer.lr * TARGET_RATIO / ratio if ratio > 0 else None
    means = "steps this large destroy what was learned" if high else "the weights will hardly move"
    message = (
        f"each step of {optimizer_in_words(m)} changes a typical weight by {_share(ratio)} of its norm "
        f"({'limit' if high else 'at least'} {_share(limit)}), and {run_in_words(m.probe)}: {means}"
    )
    message += f"; by the end they have made a typical weight {number(more[0].value)} times as large" if more else ""
    evidence = (Evidence("update per step, median over weights", ratio, limit, ">" if high else "<", "of the weight"), *more)
    name = "lower-learning-rate" if high else "raise-learning-rate"
    text = f"set the rate to about {number(float(f'{wanted:.1g}'))}: 1 % per step" if wanted else "raise the rate"
    remedies = Remedy(name, text, "safe")
    return found(at_most_info(m, severity), message, location=m.optimizer.site, evidence=evidence, remedies=remedies)


def _share(x: float) -> str:
    return percent(x) if x >= 0.001 else number(x)


def not_judged(m: Measurement) -> str:
    if not m.probe.losses:
        return "the probe training took no step"
    return "the short training ended with an error" if m.probe.ended == "raised" else ""
