"""Regularization that leaves nothing to learn with, or too little of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradcheck.analysis.convergence import CLEAR_FALL, data_fall, outcome, relative_decrease, training_outcome
from gradcheck.analysis.costs import costs_nothing, learns_slowly
from gradcheck.analysis.layer_groups import is_matrix
from gradcheck.analysis.update_sizes import decay_matters, gentle_decay
from gradcheck.analysis.wording import falls_short, layers_in_words, number, optimizer_in_words, percent, run_in_words
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from gradcheck.types.checks import Dropout
    from gradcheck.types.finding import Finding, Severity
    from gradcheck.types.measurement import Measurement, Regularization, Run

DROPOUT, DECAY, PENALTY = "dropout", "weight decay", "penalty"


def failed(m: Measurement, r: Regularization) -> bool:
    """Whether the probe learned nothing about the data. Where a penalty makes up the loss, its fall says nothing."""
    return data_fall(r) < CLEAR_FALL and (PENALTY in r.kinds or training_outcome(m) in ("stalls", "diverges"))


def recovered(r: Regularization, *kinds: str) -> Run | None:
    """The training without exactly these kinds, if it learned clearly, and clearly more than the one with them."""
    for run in r.runs:
        fell = relative_decrease(run, r.chance)
        if set(run.lifted) == set(kinds) and outcome(run, r.chance) == "learns" and fell >= max(0.0, data_fall(r)) + CLEAR_FALL:
            return run
    return None


def confirmation(m: Measurement, run: Run) -> str:
    return f"by the probe: {optimizer_in_words(m)}: {run_in_words(m.probe)}; {run.name}, {run_in_words(run)}"


def decay_steps(m: Measurement) -> float | None:
    """Steps in which weight decay alone shrinks a weight by e, for the parameters that decay fastest.

    1 / (rate x decay); momentum makes decay that is added to the gradient act 1 / (1 - momentum) times.
    """
    speeds = [p.lr * p.weight_decay for p in m.parameters if p.trainable and p.lr and p.weight_decay > 0]
    again = 1.0 if m.optimizer.decoupled or m.optimizer.adaptive else max(1 - m.optimizer.momentum, 1e-3)
    return again / max(speeds) if speeds else None


@rule(
    "REG001",
    "decay-too-strong",
    up_to="error",
    needs=("parameters", "probe", "data", "regularization"),
    limits={
        "epochs": Limit(0.5, "epochs", "Wang and Aitchison 2024: the best time scale lies between one epoch and all of them"),
        "steps": Limit(50, "steps", "heuristic: the default rate and decay of AdamW take 100,000"),
        "suspect_steps": Limit(500, "steps", "heuristic: 17 and 20 steps cost a third of chance and more; 40 to 333 nothing in 1000"),
        "penalty": Limit(10.0, "of the data's loss", "L1 and L2 searched on synthetic data: from 3 to 10 nothing was learned any more"),
    },
    explains=(
        "OPT001",
        "OPT002",
        "OPT003",
        "LOSS003",
        "GRAPH008",
        "LOSS005",
        "GRAD001",
        "GRAD004",
        "ACT002",
        "ACT004",
        "INIT002",
        "NUM001",
        "CLIP001",
    ),
)
def decay_too_strong(m: Measurement, limits: Limits) -> Verdict:
    """Weights shrink faster than they learn.

    ## What it finds
    Weight decay of the optimizer, or an L1 or L2 penalty written into the loss, that is stronger than the data.

    ## Why it matters
    Decay pulls every weight to zero at each step, whatever the batch says. When that pull wins, the outputs become
    constants, and so does the loss.

    ## How it is measured
    Weight decay: 1 / (rate x decay) steps shrink a weight by e. A penalty: the part of the loss that remains of the
    weights when the model's output is held fixed. When the probe learns nothing about the data and the decay is strong
    enough to be the reason, the same training is run without it. Momentum makes decay that is added to the gradient act
    1 / (1 - momentum) times. Decoupled decay lets no weight of an adaptive optimizer stay above 1 / decay (Xie and Li 2024),
    which is compared with where the weights start. What decay costs is measured on batches that were not trained on, over ten
    times the probe's steps: what is learned first may fade later.

    ## Limits and their sources
    An error: the probe fails, and without the decay or penalty the same training learns. Without that proof: a
    warning when the probe does not learn clearly and weights shrink by e in less than `epochs` 0.5 epochs of your data or
    `steps` 50 steps, or a penalty is above `penalty` 10 times the rest of the loss; a note when it learns all the same.
    Below `suspect-steps` 500 it is a note, a warning where a paired training with weaker decay shows a cost, and nothing where
    it shows none.

    ## When to ignore it
    When weights are meant to die out, as in pruning.

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
    run = recovered(r, DECAY) if failed(m, r) else None
    fewest = max(limits["steps"], limits["epochs"] * m.data.batches)
    short = m.data.given and steps < fewest
    if run is None and not short:
        fewest = limits["suspect_steps"]
        if not steps < fewest or not m.data.given or costs_nothing(m, "REG001"):
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
    evidence = [Evidence("steps in which weights shrink by e", steps, fewest, "<", "steps")]
    remedies = (Remedy("weaker-weight-decay", text, "safe"),)
    confirmed = confirmation(m, run) if run is not None else ""
    return [found(severity, message, location=m.optimizer.site, evidence=evidence, remedies=remedies, confirmed=confirmed)]


def _bound(m: Measurement) -> str:
    """What decoupled decay leaves of the weights of an adaptive optimizer: no more than 1 / decay each, once it has had its time."""
    matrices = [p for p in m.parameters if p.trainable and is_matrix(p) and p.weight_decay > 0 and p.std > 0]
    if not (m.optimizer.adaptive and m.optimizer.decoupled and matrices):
        return ""
    p = min(matrices, key=lambda p: 1 / (p.weight_decay * p.std))
    if p.weight_decay * p.std <= 1:
        return ""
    return f", to {number(1 / p.weight_decay)} each at most, where those of {p.name} start at {number(p.std)}"


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
    remedies = (Remedy("weaker-weight-decay", text, "safe"),)
    return [found(severity, message, location=site, evidence=evidence, remedies=remedies, confirmed=confirmed)]


@rule(
    "REG002",
    "decay-on-norm-and-bias",
    up_to="info",
    needs=("optimizer",),
    limits={"least": Limit(0.0, "weight decay", "convention of timm and nanoGPT: none on parameters with one axis")},
)
def decay_on_norm_and_bias(m: Measurement, limits: Limits) -> Verdict:
    """Weight decay also pulls on biases and on the gains of normalization layers.

    ## What it finds
    Parameters with one axis, such as biases and gains, in a parameter group with weight decay.

    ## Why it matters
    Decay limits how strongly inputs are weighted. Biases and gains weight no inputs: pulling gains to zero dims the layer,
    and pulling biases to zero only costs fit.

    ## How it is measured
    The settings of the optimizer's parameter groups and the shapes of the parameters in them.

    ## Limits and their sources
    Decay above `least` 0 on any of them. A convention (timm, nanoGPT), not a measured limit. Not a decay that takes less than a
    hundredth of a parameter in 100 000 steps, or of the gradient to which an adaptive optimizer adds it.

    ## When to ignore it
    The effect is small when the decay is.

    ## Example
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    ```

    ## Use instead
    ```python
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])
    ```

    ## References
    He et al. 2019, Bag of Tricks for Image Classification.
    """
    if not m.optimizer.given:
        return not_applicable("the optimizer was assumed")
    decayed = [p for p in m.parameters if p.trainable and p.groups > 0 and p.weight_decay > limits["least"]]
    if not decayed:
        return not_applicable("no weight decay")
    vectors = [p for p in decayed if len(p.shape) <= 1]
    if not any(decay_matters(m, p) for p in vectors):
        return []
    strongest = max(p.weight_decay for p in vectors)
    message = (
        f"weight decay {number(strongest)} also acts on {len(vectors)} biases and gains ({layers_in_words([p.name for p in vectors])})"
    )
    text = f"put the {len(vectors)} parameters with fewer than two axes into a group with weight_decay=0"
    evidence = (Evidence("largest weight decay on a bias or gain", strongest, limits["least"], ">"),)
    layers = tuple(dict.fromkeys(p.layer for p in vectors))
    remedy = Remedy("weight-decay-groups", text, "safe")
    return [found("info", message, layers=layers, location=m.optimizer.site, evidence=evidence, remedies=(remedy,))]


@rule(
    "REG003",
    "dropout-too-strong",
    up_to="error",
    needs=("probe", "regularization"),
    limits={
        "advice": Limit(0.8, "of the values", "Srivastava et al. 2014: between 0.2 and 0.5 of the hidden units are dropped"),
        "rate": Limit(0.5, "of the values", "Srivastava et al. 2014: 0.5 in hidden layers, 0.2 on inputs; more is uncommon"),
        "count": Limit(3.0, "layers", "heuristic: the heads of AlexNet and VGG have two with a rate of 0.5"),
        "noise": Limit(0.9, "of the values", "the scaled noise of a unit is then three times its signal: sqrt(rate / (1 - rate))"),
        "slower": Limit(5.0, "times", "heuristic: five times the training for the same fall"),
        "learned": Limit(0.3, "of the loss", "heuristic: beyond that it is slow and no failure"),
    },
    explains=("OPT001", "OPT002", "OPT003", "LOSS005", "GRAD001", "GRAD004", "ACT002", "ACT004", "NUM001", "CLIP001", "GRAPH008"),
)
def dropout_too_strong(m: Measurement, limits: Limits) -> Verdict:
    """So much is dropped that the rest does not say enough to learn from.

    ## What it finds
    Dropout, as a module or a function call, without which the same training learns while with it the probe does not.

    ## Why it matters
    What is kept is scaled up by 1 / (1 - rate): at a rate of 0.9 the signal's noise is three times the signal in each
    layer. Gradients then point nearly anywhere.

    ## How it is measured
    The rate of each dropout that the training step applies. When the probe training fails and one of them is at least
    0.3, the loss is taken once more with dropout off, to see whether the net has learned behind the noise; if not, the
    same training is run without dropout.

    ## Limits and their sources
    An error: the probe fails, with dropout off its loss has not fallen by 10 % either, without dropout the training learns, and
    the largest rate is above `rate` 0.5. With smaller rates a warning, when `count` 3 layers or more drop that much, else a
    note: such nets are slow to start, and train. When the net has learned behind the noise: a warning above `noise` 0.9,
    or when the loss falls `slower` 5 times slower than without; an error when both hold and it has fallen by less than `learned`
    30 %. When the probe learns slowly with `count` 3 layers or more that drop `rate` 0.5: a note, a warning where a paired
    training with less dropout ends clearly lower on batches that were not trained on, and nothing where it does not. On a
    model whose loss falls in training mode, advice from `advice` 0.8 on.

    ## When to ignore it
    When the training is much longer than the probe and is known to get through.

    ## Example
    ```python
    x = F.dropout(F.relu(self.fc1(x)), p=0.95, training=self.training)
    ```

    ## Use instead
    ```python
    x = F.dropout(F.relu(self.fc1(x)), p=0.2, training=self.training)
    ```

    ## References
    Srivastava et al. 2014, Dropout.
    """
    r = m.regularization
    if r is None or not r.dropouts:
        return not_applicable("no dropout in the training step")
    run = next((x for x in r.runs if x.lifted == (DROPOUT,) and outcome(x, r.chance) == "learns"), None)
    strongest = max(r.dropouts, key=lambda d: d.rate)
    if run is None or outcome(m.probe, m.chance) not in ("stalls", "diverges"):
        return _loud(strongest, limits["advice"]) or _many(m, r, limits)
    limit = limits["rate"]
    severity = _severity(m, r, run, strongest, limits)
    if severity is None:
        return []
    loud = [d for d in r.dropouts if d.rate >= min(limit, strongest.rate)]
    names = layers_in_words([d.layer for d in loud])
    drop = "drops" if len(loud) == 1 else "drop"
    message = f"{names} {drop} {percent(strongest.rate)} of the values: {run_in_words(m.probe)}, {run.name} {run_in_words(run)}"
    evidence = [Evidence("largest rate of dropout", strongest.rate, limit, ">=", "of the values", strongest.layer)]
    text = f"lower the rate of {names} from {number(strongest.rate)} to 0.2, and raise it again by the validation loss"
    confirmed = confirmation(m, run) if severity == "error" else ""
    layers = [d.layer for d in loud]
    remedies = (Remedy("lower-dropout", text, "safe"),)
    return [found(severity, message, layers=layers, location=strongest.site, evidence=evidence, remedies=remedies, confirmed=confirmed)]


def _loud(strongest: Dropout, limit: float) -> list[Finding]:
    """Advice about a rate that is beyond all use, although the training bears it."""
    if strongest.rate < limit:
        return []
    kept = 1 - strongest.rate
    message = f"{strongest.layer} drops {percent(strongest.rate)} of the values (limit {percent(limit)}): what is left is {percent(kept)}"
    evidence = (Evidence("largest rate of dropout", strongest.rate, limit, ">=", "of the values", strongest.layer),)
    remedies = (Remedy("lower-dropout", f"lower the rate of {strongest.layer} to between 0.1 and 0.5", "safe"),)
    return [found("info", message, layers=(strongest.layer,), location=strongest.site, evidence=evidence, remedies=remedies)]


def _many(m: Measurement, r: Regularization, limits: Limits) -> list[Finding]:
    """Advice about dropouts that together leave little of a signal, in a training that is slow and was not seen to be none the worse."""
    loud = [d for d in r.dropouts if d.rate >= limits["rate"] and not d.attention]
    if len(loud) < limits["count"] or not learns_slowly(m) or costs_nothing(m, "REG003"):
        return []
    names, rate = layers_in_words([d.layer for d in loud]), max(d.rate for d in loud)
    message = (
        f"{len(loud)} layers ({names}) drop {percent(rate)} of the values (limit {number(limits['count'])} layers), "
        f"and the training is slow: {run_in_words(m.probe)}"
    )
    evidence = (Evidence("layers that drop as much", float(len(loud)), limits["count"], ">=", "layers"),)
    remedies = (Remedy("lower-dropout", f"lower the rate of {names} from {number(rate)} to 0.2", "safe"),)
    layers = [d.layer for d in loud]
    return [found("info", message, layers=layers, location=loud[0].site, evidence=evidence, remedies=remedies)]


def _severity(m: Measurement, r: Regularization, run: Run, strongest: Dropout, limits: Limits) -> Severity | None:
    """Of dropout without which the same training learns."""
    if failed(m, r):
        if recovered(r, DROPOUT) is None:
            return None
        many = sum(d.rate >= limits["rate"] for d in r.dropouts if not d.attention) >= limits["count"]
        return "error" if strongest.rate > limits["rate"] else "warning" if many else "info"
    if strongest.rate <= limits["rate"] or not m.probe.losses:
        return None
    mine, other = data_fall(r) / len(m.probe.losses), relative_decrease(run, r.chance) / len(run.losses)
    slow, noisy = other > limits["slower"] * mine, strongest.rate >= limits["noise"]
    return "error" if slow and noisy and data_fall(r) < limits["learned"] else "warning" if slow or noisy else None


RULES = (decay_too_strong, decay_on_norm_and_bias, dropout_too_strong)
