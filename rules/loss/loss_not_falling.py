import math
from collections.abc import Sequence

from gradcheck.analysis import convergence
from gradcheck.analysis.layer_groups import head_site
from gradcheck.analysis.wording import number, percent
from gradcheck.rules.outputs import floor_of_bounded_logits
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, NoVerdict, Verdict, found, not_applicable, not_measured, rule
from gradcheck.types.training import ONE_OPTIMIZER, SAME_RATE_LONGER, Run

FEW_SAMPLES = 16  # that a training on one batch takes


@rule(
    "LOSS005",
    up_to="error",
    needs=("probe",),
    wants=("baseline",),
    limits={
        "explained": Limit(0.1, "of the variance", "heuristic: what a linear model finds beyond this is no accident of the split"),
        "fall": Limit(0.1, "of the loss", "calibration E16: 12 of 12 healthy nets lose 95 % within 155 steps"),
        "share": Limit(0.5, "of what a linear model explains", "heuristic: a model that finds half as much is on its way to the rest"),
        "steps": Limit(50, "steps", "calibration E16: at the better of the two rates, 11 of 12 healthy nets are through by then"),
        "plateau": Limit(0.02, "relative", "heuristic: less than 2 % of the initial loss is no change"),
    },
)
def loss_not_falling(m: Measurement, limits: Limits) -> Verdict:
    """The model cannot overfit one small batch at any learning rate that was tried.

    ## What it finds
    A training that does not learn with the user's optimizer, nor at other rates of it, nor with Adam at 0.001 and 0.003
    on 16 samples of the first batch; or that fits those samples, and learns nothing of data in which a linear model
    finds something.

    ## Why it matters
    A healthy model fits a handful of samples in a few dozen steps. One that cannot has a fault that no learning rate cures:
    the input does not reach the output, the labels do not reach the loss, or the gradient does not reach the weights.

    ## How it is measured
    The probe, and the experiments that follow when it fails. The level where the loss stays is compared with known ones:
    the uniform prediction, the best constant prediction, the floor of a softmax before `cross_entropy`. The linear model is a
    ridge regression of the targets on the flattened inputs, judged on a fifth of the samples that it was not fitted on. A loss
    that has left its start and still falls is not judged, nor one whose level says nothing, as that of a policy gradient; nor one
    of unknown form that falls by 2 % on one batch: a distance to soft targets ends at their entropy, near where it starts; nor is a
    model with fewer weights than the batch has targets expected to memorise them.

    ## Limits and their sources
    The probe, and a run at another rate, learns when its loss falls by 10 %, or by 2 % beyond its noise. On one
    batch, the fall is taken below the first loss or below the batch's best constant prediction, whichever is lower.
    `fall` 0.1: less is an error. Calibration E16: 12 of 12 healthy nets take 9 to 155 steps to 5 % of the initial
    loss, so a miss at both rates is a fault. `steps` 50: shorter runs (a spent time budget) make it a warning.
    `explained` 0.1: from this share of the targets' variance on, beyond what shuffled targets give, the data hold
    something, and `share` 0.5 of it is what the model has to find. `plateau` 0.02: the loss is said to be at a known level when it is
    this close to it. It is a warning, too, on data or a loss that gradcheck assumed, for a model that was trained before, and for one
    that starts below half of chance.

    ## When to ignore it
    When equal inputs carry different labels, and when the loss cannot fall by design (an adversary's, at its balance).

    ## Example
    ```python
    def forward(self, x):
        return self.head(self.body(x * 0))
    ```

    ## Use instead
    ```python
    def forward(self, x):
        return self.head(self.body(x))
    ```

    ## References
    Karpathy, "A Recipe for Training Neural Networks", 2019 ("overfit one batch").
    """
    verdict = convergence.training_outcome(m)
    if verdict == "learns" or convergence.on_its_way(m.probe, m.chance):
        return []
    if verdict == "unknown":
        return _not_judged(m)
    if convergence.best_experiment(m) is not None:
        return []
    overfits = [r for r in m.experiments if r.rate_factor is None and r.batches == 1 and r.name not in (ONE_OPTIMIZER, SAME_RATE_LONGER)]
    tried = [r for r in overfits if convergence.experiment_outcome(r, m) != "unknown"]
    falling = any(convergence.on_its_way(r, r.chance) for r in overfits)
    if not tried and not falling:
        return not_measured("no training on one batch was run" if not overfits else "the trainings on one batch were too short")
    if falling or any(r.ended == "learned" or convergence.relative_decrease(r, r.chance) >= limits["fall"] for r in tried):
        return _behind_a_linear_model(m, limits)
    if weights_for_targets(m) < 1:
        return not_applicable(f"the model has fewer weights than {FEW_SAMPLES} samples have targets: it cannot memorise them")
    if m.chance is None and any(r.chance is None and convergence.relative_decrease(r) >= convergence.LEAST_FALL for r in tried):
        return not_measured("on one batch the loss falls a little; how far it could fall is unknown: gradcheck does not know this loss")
    return [_not_falling(m, tried, limits)]


def _not_judged(m: Measurement) -> NoVerdict:
    """Why nothing is said about how the loss develops."""
    if m.probe.beside:
        return not_measured("several optimizers train: the loss of one of them need not fall")
    if m.probe.live:
        return not_measured("a loss that does not fall in a watched run proves nothing by itself")
    if m.probe.error or len(m.probe.losses) < convergence.FEWEST_STEPS:
        return not_measured(f"the short training ended after {len(m.probe.losses)} steps{': ' + m.probe.error if m.probe.error else ''}")
    if m.probe.surrogate:
        return not_applicable(f"the level of this loss does not say how well the model does: {m.probe.surrogate}")
    if not convergence.levelled(m.probe, m.chance):
        return not_applicable("the level of a loss that may be below zero does not say how well the model does")
    return not_measured(f"{len(m.probe.losses)} steps of the short training do not tell whether the loss falls")


def weights_for_targets(m: Measurement) -> float:
    """Trained weights for each number that a model would have to memorise of a few samples; infinite where that is not known."""
    call = m.losses[0] if len(m.losses) == 1 else None
    shape = call.target_shape if call is not None else ()
    if not shape or not m.data.batch_size or shape[0] % m.data.batch_size:
        return math.inf
    samples = min(FEW_SAMPLES, m.data.batch_size)
    return sum(p.count for p in m.parameters if p.trainable) / (samples * math.prod(shape) / m.data.batch_size)


def _behind_a_linear_model(m: Measurement, limits: Limits) -> list[Finding]:
    """The model can memorise a few samples, but learns nothing from data in which a linear model finds something."""
    b, sure = m.baseline, m.data.given and m.loss_given and not m.pretrained and m.optimizer.given
    if b is None or b.explained - max(0.0, b.shuffled) < limits["explained"] or len(m.probe.losses) < convergence.PATIENCE:
        return []
    if m.chance and 1 - convergence.start_and_end(m.probe)[1] / m.chance >= limits["share"] * b.explained:
        return []
    course = f"{len(m.probe.losses)} steps with {m.optimizer.name} do not bring the loss clearly below chance"
    tried = ", nor does any other rate that was tried" if any(r.rate_factor not in (None, 1) for r in m.experiments) else ""
    message = (
        f"the model does not learn from the data: {course}{tried}; a linear model on the raw inputs explains "
        f"{percent(b.explained)} of the targets' variance on held-out samples ({percent(max(0.0, b.shuffled))} when they are shuffled)"
    )
    evidence = (
        Evidence("relative fall of the loss in the probe", convergence.relative_decrease(m.probe, m.chance), convergence.CLEAR_FALL, "<"),
        Evidence("explained by a linear model on held-out samples", b.explained, limits["explained"], ">=", "of the variance"),
    )
    text = "start from a smaller model that learns, and add to it only what keeps it learning"
    place = next((c.site for c in m.losses if c.site), None) or head_site(m)
    remedies = Remedy("check-data-path", text)
    return [
        found(
            "error" if sure else "warning",
            message,
            location=place,
            evidence=evidence,
            remedies=remedies,
            confirmed=f"by the probe: {course}",
        )
    ]


def _not_falling(m: Measurement, tried: Sequence[Run], limits: Limits) -> Finding:
    best = max(tried, key=lambda r: convergence.relative_decrease(r, r.chance))
    start, end, _ = convergence.start_and_end(best)
    fall = convergence.relative_decrease(best, best.chance)
    below = m.chance is not None and 0 < m.probe.losses[0] < 0.5 * m.chance
    long = any(len(r.losses) >= limits["steps"] or r.ended == "non-finite" for r in tried)
    sure = m.data.given and m.loss_given and not m.pretrained and not below and long and fall < limits["fall"]
    limit = limits["fall"]
    severity: Severity = "error" if sure else "warning"
    rates = ", ".join(r.name.removesuffix(" on one batch") for r in tried)
    course = f"{len(best.losses)} steps move it from {number(start)} to {number(end)}" if math.isfinite(fall) else "it becomes non-finite"
    over = "the best constant prediction" if best.chance is not None and best.chance < start else "the first loss"
    fallen = (
        f", {number(100 * abs(fall))} % {'below' if fall >= 0 else 'above'} {over} (needed: {number(100 * limit)} % below)"
        if math.isfinite(fall)
        else ""
    )
    plateau = _known_level(m, best, end, limits["plateau"])
    probe = "diverges" if convergence.training_outcome(m) == "diverges" else "stalls"
    return found(
        severity,
        f"the loss does not fall at any learning rate tried, not even on one small batch: at best ({rates}) {course}{fallen}"
        f"{'; ' + plateau if plateau else ''}: the training signal does not reach the weights",
        location=next((c.site for c in m.losses if c.site), None) or head_site(m),
        evidence=Evidence("relative fall of the loss on one batch", fall, limit, "<"),
        remedies=Remedy(
            "check-data-path",
            "follow one batch by hand: from the input to the output, from the labels to the loss, from the loss to the gradients",
        ),
        confirmed=f"by the probe: it {probe} with {m.optimizer.name}, and so do all {len(m.experiments)} experiments",
    )


def _known_level(m: Measurement, run: Run, loss: float, tolerance: float) -> str:
    """Which known level the loss stays at, in words; "" when none."""
    levels = []
    only = m.losses[0] if len(m.losses) == 1 else None
    if only is not None and only.uniform:
        levels.append((only.uniform, f"the uniform prediction over {only.classes or 'all'} classes"))
    if only is not None and only.function == "cross_entropy" and (only.classes or 0) > 1:
        levels.append((floor_of_bounded_logits(only.classes or 2, 1.0), "what cross_entropy of softmax outputs cannot go below"))
    constants = [x for x in (run.chance, only.chance if only else None, m.chance) if x]
    levels += [(x, "the best constant prediction, whatever the input") for x in constants]
    close = [(abs(loss - level) / level, level, what) for level, what in levels if level > 0 and abs(loss - level) <= tolerance * level]
    if not close:
        return ""
    _, level, what = min(close)
    return f"that is {number(level)}, the loss of {what}" if "cannot" not in what else f"that is {number(level)}, {what}"
