from dataclasses import replace
from statistics import median

from gradcheck.analysis.convergence import relative_decrease
from gradcheck.analysis.wording import falls_short, number, optimizer_in_words, percent, run_in_words
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.types.training import Run

EPSILON_BESIDE_ROOT = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "SparseAdam", "AdaBelief", "Lamb", "LAMB", "Yogi")
USUAL_EPSILON = 1e-8
SETTLED, LATE = 3, 30  # steps between which gradients are judged: zero-initialised branches have started, little has been learned
SMALL_GAIN = 0.01  # LayerScale starts its gains at 1e-6 to 1e-2


def gradient_rms(p: Parameter) -> float | None:
    """Root mean square of the entries of its gradient, the median over the settled steps; None when there was none, or only zeros."""
    values = [s.gradient_norm / p.count**0.5 for s in p.steps if SETTLED <= s.step <= LATE and s.gradient_norm and s.gradient_finite]
    return median(values) if values and p.count else None


def judged_gradients(m: Measurement) -> list[tuple[Parameter, float]]:
    """Trained parameters with the size of their gradients. Embeddings are left out: most of their rows get no gradient."""
    tables = {x.name for x in m.of_kind("embedding")}
    pairs = [(p, gradient_rms(p)) for p in m.parameters if p.trainable and p.groups > 0 and p.layer not in tables]
    return [(p, rms) for p, rms in pairs if rms is not None]


def has_small_gains(m: Measurement) -> bool:
    """Whether branches are scaled by gains that start close to zero: what lies behind them gets small gradients by design."""
    gains = [p for p in m.parameters if p.trainable and sum(size > 1 for size in p.shape) <= 1 and p.name.rpartition(".")[2] != "bias"]
    return any(0 < abs(p.mean) <= SMALL_GAIN and p.std <= 1e-6 * abs(p.mean) for p in gains)


@rule(
    "OPT003",
    up_to="warning",
    needs=("parameters", "probe", "epsilon"),
    limits={
        "multiple": Limit(10.0, "epsilons", "heuristic: below 10 epsilons the step loses more than 9 % of its size"),
        "share": Limit(0.1, "of the weights", "heuristic; Wortsman et al. 2023 saw layers stall below epsilon"),
        "gain": Limit(0.3, "of the loss", "heuristic: how much further the loss must fall with the usual epsilon"),
    },
)
def adam_epsilon(m: Measurement, limits: Limits) -> Verdict:
    """Gradients are no larger than Adam's epsilon, which then decides the size of the steps.

    ## What it finds
    Weights whose gradients are about as small as the constant that Adam and RMSprop add to the root of their mean square.

    ## Why it matters
    Adam divides by sqrt(v) + epsilon. Where epsilon is the larger of the two, its step is gradient x rate / epsilon: plain
    gradient descent with a rate that nobody chose, usually a very small one.

    ## How it is measured
    Root mean square of each parameter's gradient, ||g|| / sqrt(count), the median over the measured steps 3 to 30.
    Embeddings and parameters whose gradient is zero are left out. When your epsilon is above 0.000001, the probe
    training is run once more with 1e-8.

    ## Limits and their sources
    More than `share` 10 % of the weights have gradients below `multiple` 10 epsilons: a warning when the probe does not
    learn clearly, or when with epsilon 1e-8 the loss falls more than twice as far, and by `gain` 30 % of where it started
    further; else a note. The limits are heuristic.

    ## When to ignore it
    When a large epsilon is there to damp the steps, as in some recipes for RMSprop. Models with LayerScale, and optimizers
    that gradcheck assumed, get a note at most.

    ## Example
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1.0)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8)
    ```

    ## References
    Kingma and Ba 2015, Adam; Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities.
    """
    eps = m.optimizer.eps
    if not eps or m.optimizer.name not in EPSILON_BESIDE_ROOT:
        return not_applicable("the optimizer has no epsilon beside its gradients")
    pairs = judged_gradients(m)
    tables = {x.name for x in m.of_kind("embedding")}
    if all(p.layer in tables for p in m.parameters if p.trainable):
        return not_applicable("only embeddings are trained")
    if not pairs:
        return not_measured("no gradient after the first steps was measured")
    limit = limits["multiple"] * eps
    count = sum(p.count for p, _ in pairs)
    small = [(p, rms) for p, rms in pairs if rms < limit]
    share = sum(p.count for p, _ in small) / count
    if share <= limits["share"]:
        return []
    typical = median(rms for _, rms in small)
    better = _gain(m)
    helps = better is not None and better > limits["gain"] and better > _own_fall(m)
    excused = not m.optimizer.given or (has_small_gains(m) and eps <= USUAL_EPSILON)
    severity: Severity = "warning" if not excused and (helps or (falls_short(m) and better is None)) else "info"
    kept = typical / (typical + eps)
    message = (
        f"{percent(share)} of the weights have gradients of about {number(typical)}, under {number(limits['multiple'])} times the epsilon "
        f"{number(eps)} of {optimizer_in_words(m)}: their steps are {percent(kept)} of the size that the rate suggests"
    )
    if helps and m.small_epsilon is not None:
        message += f"; {run_in_words(m.probe)}, with epsilon {number(USUAL_EPSILON)} {run_in_words(m.small_epsilon)}"
    text = f"set eps={number(USUAL_EPSILON)}" if eps > USUAL_EPSILON else "set eps=1e-12, or scale the loss up"
    evidence = [
        Evidence("weights with gradients below the limit", share, limits["share"], ">", "of the weights"),
        Evidence("typical gradient of these", typical, limit, "<", "rms"),
    ]
    layers = tuple(dict.fromkeys(p.layer for p, _ in small))
    return [
        found(severity, message, layers=layers, location=m.optimizer.site, evidence=evidence, remedies=Remedy("adam-epsilon", text, "safe"))
    ]


def _gain(m: Measurement) -> float | None:
    """How much further the loss fell with the usual epsilon, in as many steps, of the loss at the start; None when that was not tried."""
    run = m.small_epsilon
    return None if run is None or len(run.losses) < 2 else relative_decrease(run, m.chance) - _own_fall(m)


def _own_fall(m: Measurement) -> float:
    """Fall of the probe's loss in as many steps as the training with the usual epsilon took."""
    steps = len(m.small_epsilon.losses) if m.small_epsilon is not None else len(m.probe.losses)
    return max(relative_decrease(_shortened(m.probe, steps), m.chance), 0.0)


def _shortened(run: Run, steps: int) -> Run:
    return replace(run, losses=run.losses[:steps], ended=run.ended if len(run.losses) <= steps else "done")
