import math

from gradcheck.analysis.convergence import CLEAR_FALL, comes_down, data_fall
from gradcheck.analysis.costs import costs_nothing
from gradcheck.analysis.layer_groups import is_matrix
from gradcheck.analysis.update_sizes import gentle_decay
from gradcheck.analysis.wording import falls_short, number, quoted, run_in_words
from gradcheck.rules.regularization import DECAY, PENALTY, confirmation, failed, recovered
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.types.training import Regularization, Run


def decay_steps(m: Measurement) -> float | None:
    """Steps in which weight decay alone shrinks a weight by e, for the parameters that decay fastest.

    1 / (rate x decay); momentum makes decay that is added to the gradient act 1 / (1 - momentum) times.
    """
    speeds = [p.lr * p.weight_decay for p in m.parameters if p.trainable and p.lr and p.weight_decay > 0]
    again = 1.0 if m.optimizer.decoupled or m.optimizer.adaptive else max(1 - m.optimizer.momentum, 1e-3)
    return again / max(speeds) if speeds else None


@rule(
    "REG001",
    up_to="error",
    needs=("parameters", "probe", "data", "regularization"),
    limits={
        "epochs": Limit(0.5, "epochs", "Wang and Aitchison 2024: the best time scale lies between one epoch and all of them"),
        "steps": Limit(50, "steps", "heuristic: the default rate and decay of AdamW take 100,000"),
        "suspect_steps": Limit(500, "steps", "heuristic: 17 and 20 steps cost a third of chance and more; 40 to 333 nothing in 1000"),
        "penalty": Limit(10.0, "of the data's loss", "L1 and L2 scanned on synthetic data: between 3 and 10 nothing was learned any more"),
    },
    explains="OPT001 OPT007 OPT002 OPT003 LOSS003 GRAPH008 LOSS005 GRAD001 GRAD004 ACT002 ACT004 INIT002 NUM001 CLIP001".split(),
)
def decay_too_strong(m: Measurement, limits: Limits) -> Verdict:
    """Weights shrink faster than they learn.

    ## What it finds
    Weight decay of the optimizer, or an L1 or L2 penalty written into the loss, that outweighs the data.

    ## Why it matters
    Decay pulls every weight to zero at each step, whatever the batch says. When that pull wins, the outputs become constants, and
    so does the loss.

    ## How it is measured
    Weight decay: 1 / (rate x decay) steps shrink a weight by e. A penalty: the part of the loss that depends on the weights when
    the model's output is held fixed. When the probe learns nothing of the data, and the decay is strong enough to be the reason,
    the same training is run without it. Momentum makes decay that is added to the gradient act 1 / (1 - momentum) times. Decoupled
    decay lets no weight of an adaptive optimizer stay above 1 / decay (Xie and Li 2024), which is compared with where the weights
    start. What decay costs is measured on batches that were not trained on, over ten times the probe's steps: what is learned first
    may fade later.

    ## Limits and their sources
    An error: the probe fails, and without the decay or penalty the same training learns, or leaves a level above chance where
    the decay holds it. Without that proof: a warning when the probe does not learn clearly and weights shrink by e in less than
    `epochs` 0.5 epochs of your data or `steps` 50 steps, or a penalty is above `penalty` 10 times the rest of the loss; a note when it
    learns. Below `suspect-steps` 500 a note, a warning where a paired training with weaker decay shows a cost, nothing where it shows none.

    ## When to ignore it
    When weights should die out, as in pruning.

    ## Example
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    ```

    ## References
    Krogh and Hertz 1991, A Simple Weight Decay Can Improve Generalization; Wang and Aitchison 2024, How to set AdamW's
    weight decay as you scale model and dataset size; Xie and Li 2024, Implicit Bias of AdamW: l-infinity Norm Constrained
    Optimization.
    """
    r, steps = m.regularization, decay_steps(m)
    if r is None or (steps is None and r.penalty is None):
        return not_applicable("no weight decay, and no penalty on the weights in the loss")
    if m.probe.ended == "raised" or not m.probe.losses:
        return not_measured("the probe training did not run")
    findings: list[Finding] = []
    if r.penalty is not None:
        findings += _penalty(m, r, limits["penalty"])
    if not findings and steps is not None and m.optimizer.given:
        findings += _decay(m, r, steps, limits)
    return findings


def _decay(m: Measurement, r: Regularization, steps: float, limits: Limits) -> list[Finding]:
    """`steps` shrink the weights by e."""
    run = (recovered(r, DECAY) or _relieved(m, r)) if failed(m, r) else None
    fewest = max(limits["steps"], limits["epochs"] * m.data.batches)
    short = m.data.given and steps < fewest
    if not short:
        fewest = limits["suspect_steps"]
        if run is None and (not steps < fewest or not m.data.given or costs_nothing(m, "REG001")):
            return []
    severity: Severity = "error" if run is not None else "warning" if short and falls_short(m) else "info"
    strongest = max(p.weight_decay for p in m.parameters)
    faster = ", faster than they learn" if severity != "info" else ""
    message = (
        f"weight decay {number(strongest)} at rate {number(m.optimizer.lr)} shrinks the weights by e in {number(steps)} steps "
        f"(limit {number(fewest)}){faster}{_bound(m)}: {run_in_words(m.probe)}"
    )
    if run is not None:
        message += f"; {run.name}, {run_in_words(run)}"
    text = f"set weight_decay to {number(gentle_decay(m, strongest))}"
    evidence = Evidence("steps in which weights shrink by e", steps, fewest, "<", "steps")
    remedies = Remedy("weaker-weight-decay", text, "safe")
    confirmed = confirmation(m, run) if run is not None else ""
    return [found(severity, message, location=m.optimizer.site, evidence=evidence, remedies=remedies, confirmed=confirmed)]


def _relieved(m: Measurement, r: Regularization) -> Run | None:
    """The training without decay, if that comes clearly below what the decay holds above chance."""
    return next((x for x in r.runs if x.lifted == (DECAY,) and r.penalty is None and comes_down(x, m.probe, m.chance)), None)


def _bound(m: Measurement) -> str:
    """What decoupled decay leaves of the weights of an adaptive optimizer: in the long run no more than 1 / decay each."""
    matrices = [p for p in m.parameters if p.trainable and is_matrix(p) and p.weight_decay > 0 and p.std > 0]
    if not (m.optimizer.adaptive and m.optimizer.decoupled and matrices):
        return ""
    p = min(matrices, key=lambda p: 1 / (p.weight_decay * p.std))
    if p.weight_decay * p.std <= 1:
        return ""
    return f", to {number(1 / p.weight_decay)} each at most, where those of {quoted(p.name)} start at {number(p.std)}"


def _penalty(m: Measurement, r: Regularization, limit: float) -> list[Finding]:
    penalty = r.penalty
    assert penalty is not None
    ratio = penalty.value / max(abs(penalty.data), 1e-12)
    run = recovered(r, PENALTY) if failed(m, r) else None
    if run is None and not ratio > limit:
        return []
    severity: Severity = "error" if run is not None else "info" if data_fall(r) >= CLEAR_FALL else "warning"
    kind = "L1" if penalty.degree < 1.25 else "L2" if penalty.degree > 1.75 else "L1 and L2"
    message = (
        f"the {kind} penalty on the weights is {number(ratio)} times the loss of the data at the start "
        f"({number(penalty.value)} against {number(penalty.data)}), and training shrinks the weights instead of learning"
    )
    if run is not None and r.start_loss is not None and r.trained_loss is not None:
        message += f": the loss of the data goes from {number(r.start_loss)} to {number(r.trained_loss)}; {run.name}, {run_in_words(run)}"
    text = f"divide the factor of the penalty by {number(float(f'{ratio / 0.1:.1g}'))}: it is then a tenth of the loss"
    evidence = [Evidence("penalty over the rest of the loss", ratio, limit, ">", "times")]
    if math.isfinite(data_fall(r)):
        evidence.append(Evidence("fall of the data's loss in the probe", data_fall(r), CLEAR_FALL, "<", "of the loss"))
    site = m.losses[0].site if m.losses else None
    confirmed = confirmation(m, run) if run is not None else ""
    remedies = Remedy("weaker-weight-decay", text, "safe")
    return [found(severity, message, location=site, evidence=evidence, remedies=remedies, confirmed=confirmed)]
