import math

from gradcheck.analysis.wording import number, quoted
from gradcheck.rules.outputs import REGRESSION_LOSSES
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

SAMPLE = 1024  # entries of a large parameter that its product with the gradient is estimated from (measure/parameters.py)


@rule(
    "LOSS003",
    up_to="warning",
    needs=("probe", "losses"),
    limits={
        "ratio": Limit(
            3.0,
            "times chance",
            "calibration E1 and E2: 0 of 58 healthy architectures are above (largest 1.54); 67 % of nets above fail in 200 steps",
        ),
        "strong_ratio": Limit(10.0, "times chance", "calibration E1: most nets above fail with a rate that suits the others"),
        "near_chance": Limit(1.5, "times chance", "calibration E2: the range of healthy nets at the start"),
        "steps": Limit(10, "steps", "heuristic: a head that is too large but harmless is corrected within a few steps"),
    },
)
def initial_loss(m: Measurement, limits: Limits) -> Verdict:
    """The loss before training is far above that of a constant prediction.

    ## What it finds
    A first loss of several times "chance": the loss of the best constant prediction, log C for C balanced classes, the
    variance of the targets for mean squared error.

    ## Why it matters
    A model that starts out confident and wrong spends its first steps on unlearning that; with large steps it may end up
    saturated, with dead units.

    ## How it is measured
    The loss of the first step of the probe over chance, computed from the labels of the scan. Losses that are not known have no chance, and
    are not judged; nor are targets that a constant predicts almost perfectly. A regression whose targets are far from an output of usual
    size is left to `unscaled-target`: no scaling of the head helps it. Nor does it where the loss normalises the outputs and scales them
    itself, with a margin, say (ArcFace): not judged either, when the head's weights have no part of the excess, or a normalization
    follows the head.

    ## Limits and their sources
    `ratio` 3: warning, unless the probe comes within `near-chance` 1.5 times chance in its first `steps` 10; then advice.
    `strong-ratio` 10: warning in any case. Of 58 healthy architectures none starts above 1.54; MNASNet on 10 classes
    starts at 3.6 and trains (calibration E1 and E2). Never an error: SGD often recovers. On data that
    gradcheck made up, a regression loss is advice only.

    ## When to ignore it
    When the model was pretrained on other labels, and when warm-up takes care of it.

    ## Example
    ```python
    self.head = nn.Linear(512, 10)
    nn.init.normal_(self.head.weight, std=1.0)
    ```

    ## Use instead
    ```python
    self.head = nn.Linear(512, 10)
    nn.init.normal_(self.head.weight, std=0.01)
    ```

    ## References
    Karpathy, "A Recipe for Training Neural Networks", 2019 ("verify loss at init").
    """
    chance = m.chance
    if chance is None or chance <= 1e-3:
        return not_applicable("the loss has no known chance level" if chance is None else "a constant prediction is almost perfect")
    if not m.probe.losses:
        return not_measured("the probe took no step")
    if len(m.losses) == 1 and m.losses[0].uniform is not None:
        chance = max(chance, m.losses[0].uniform * (m.losses[0].weight_in_total or 1.0))  # imbalanced classes: an even guess is not wrong
    first = m.probe.losses[0]
    if not (math.isfinite(first) and first > limits["ratio"] * chance) or _owed_to_the_targets(m, chance, limits["ratio"]):
        return []
    head = next((x for x in reversed(m.layers) if x.head), None)
    if head is not None and (head.normalized or _owed_to_what_follows(m, head.name, first - chance)):
        return []
    ratio = first / chance
    start = [x for x in m.probe.losses[: int(limits["steps"]) + 1] if math.isfinite(x)]
    soon = next((i for i, x in enumerate(start) if x <= limits["near_chance"] * chance), None)
    made_up = not m.data.given and (not m.loss_given or any(c.function in REGRESSION_LOSSES for c in m.losses))
    severity: Severity = "info" if made_up or (soon is not None and ratio <= limits["strong_ratio"]) else "warning"
    course = f"it is near chance after {soon} steps" if soon is not None else f"after {len(start) - 1} steps it is {number(start[-1])}"
    name = quoted(head.name) if head else "the last layer"
    return [
        found(
            severity,
            f"the first loss is {number(first)}, {number(ratio)} times that of a constant prediction "
            f"({number(chance)}; limit {number(limits['ratio'])} times): the model starts out confident and wrong; {course}",
            layers=(head.name,) if head else (),
            location=head.site if head and head.site else next((c.site for c in m.losses if c.site), None),
            evidence=Evidence("first loss over that of a constant prediction", ratio, limits["ratio"], ">", "times"),
            remedies=Remedy("head-scaling", f"multiply the initial weights of {name} by about {number(1 / ratio)}; zero its bias", "safe"),
        )
    ]


def _owed_to_the_targets(m: Measurement, chance: float, ratio: float) -> bool:
    """Whether the outputs of a regression, by their own size, cost no more than the limit: it is the targets that are far away."""
    call = m.losses[0] if len(m.losses) == 1 else None
    if call is None or call.function not in REGRESSION_LOSSES or call.target_mean is None:
        return False
    size = math.hypot(call.input_mean, call.input_std)
    own = (size**2 if call.function == "mse_loss" else size) * (call.weight_in_total or 1.0)
    return own <= (ratio - 1) * chance


def _owed_to_what_follows(m: Measurement, head: str, excess: float) -> bool:
    """Whether the head's weights have little part in it. A loss that is convex in the outputs is above that of none by at most the product
    of outputs and gradient, which is that of the head's parameters and theirs; of large ones it is known by a sample only.
    """
    steps = [(p.count, p.steps[0]) for p in m.parameters if p.layer == head and p.steps and p.steps[0].step == 0]
    if not steps or any(s.along is None for _, s in steps):
        return False
    unsure = sum(s.norm * (s.gradient_norm or 0.0) for count, s in steps if count > SAMPLE) / math.sqrt(SAMPLE)
    return sum(s.along or 0.0 for _, s in steps) + 2 * unsure < excess / 2
