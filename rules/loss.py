"""LOSS: the loss, and what it is handed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gradcheck import progress
from gradcheck.judge.protocol import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.nouns.verdict import Evidence, Finding, Remedy, Severity
from gradcheck.rules.outputs import REGRESSION_LOSSES, Mismatch, floor_of_bounded_logits, mismatch
from gradcheck.rules.words import BY_VALUE, number, percent

if TYPE_CHECKING:
    from gradcheck.nouns.measurement import LossCall, Measurement, Run, Softmax
    from gradcheck.nouns.places import Location


@rule(
    "LOSS001",
    "output-loss-mismatch",
    up_to="error",
    needs=("losses",),
    limits={
        "row_sum_error": Limit(1e-4, "", "float32 softmax rows sum to 1 within 1e-6"),
        "logsumexp_error": Limit(0.01, "", "log_softmax rows have logsumexp 0 within 1e-5; untrained logits are off by about log(classes)"),
        "floor_share": Limit(0.5, "of the loss at chance", "heuristic: a bounded logit is an error when most of the loss is out of reach"),
        "target_excess": Limit(0.1, "of the targets' std", "heuristic: smaller excesses are rounding or single values"),
        "target_share": Limit(0.1, "of the targets", "heuristic: an error when a good share of targets is out of reach"),
    },
    explains=("GRAD004", "GRAD001", "GRAD002", "LOSS003", "GRAPH008", "LOSS005", "ACT001", "ACT002", "OPT001", "OPT002", "GRAPH004"),
)
def output_loss_mismatch(m: Measurement, limits: Limits) -> Verdict:
    """The model's output is not what the loss function expects.

    ## What it finds
    Softmax, sigmoid or ReLU before `cross_entropy`; sigmoid before `binary_cross_entropy_with_logits`; logits or
    probabilities into `nll_loss`, `kl_div` or `ctc_loss`; unbounded outputs into `binary_cross_entropy`; softmax over a
    single unit, which is constant; and a ReLU, sigmoid or tanh on an output whose targets lie outside its range.

    ## Why it matters
    Nothing raises, and the loss may even fall, but it cannot go where it should. Cross entropy of softmax outputs stops at
    -1 + log(e + C - 1): at 1.46 of 2.30 for 10 classes, at 3.62 of 4.61 for 100.

    ## How it is measured
    At each call of a loss function: the function that made its input, the input's range, how far rows are from summing
    to 1 (or from a logsumexp of 0), and the range of the targets. ReLU and sigmoid are judged by the function that made
    the input, never by the range alone.

    ## Limits and their sources
    `row_sum_error` 1e-4: rows that are not negative and sum to 1 this closely are probabilities.
    `logsumexp_error` 0.01: rows further from 0 than this are not normalised log-probabilities.
    `floor_share` 0.5: tanh before `cross_entropy` is a warning while the lowest loss that it allows,
    log(1 + (C - 1) exp(-2)), is below this share of log C, an error above it.
    `target_excess` 0.1 and `target_share` 0.1: targets this many standard deviations outside an output's range count, and
    are an error when this share of all targets (estimated from their mean and standard deviation) is out of reach.
    `log_softmax` before `cross_entropy` changes nothing and is advice. When the loss was assumed by gradcheck, all of this is
    advice (a warning for targets out of range), except for a constant output.

    ## When to ignore it
    When a bounded output is meant as a regulariser and its floor is accepted.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(64, 10), nn.Softmax(dim=1))
    loss_fn = nn.CrossEntropyLoss()
    ```

    ## Use instead
    ```python
    model = nn.Linear(64, 10)
    loss_fn = nn.CrossEntropyLoss()
    ```

    ## References
    PyTorch documentation: `CrossEntropyLoss`, `NLLLoss`, `BCEWithLogitsLoss`. Schoop et al., "UMLAUT", CHI 2021.
    Nikanjam et al., "NeuraLint", TOSEM 2021.
    """
    if not m.losses and not m.softmaxes:
        return not_applicable("no known loss function is called")
    findings = _constant_outputs(m)
    for call in m.losses:
        wrong = mismatch(_with_direct_producer(m, call), limits)
        if wrong is not None and not (wrong.about_targets and not m.data.given):
            findings.append(_mismatched(m, call, wrong))
    return findings


def _with_direct_producer(m: Measurement, call: LossCall) -> LossCall:
    """The call, its producer forgotten when pooling or selecting lies between: SqueezeNet averages a ReLU into its logits."""
    layer = m.layer(call.producer_layer) if call.producer_layer else None
    if layer is None or call.producer == "log_softmax":
        return call
    shape = layer.output_shape
    pooled = math.prod(shape) != math.prod(call.input_shape) or (len(shape) > 3 and len(call.input_shape) < len(shape))
    return replace(call, producer=None) if pooled else call


def _mismatched(m: Measurement, call: LossCall, wrong: Mismatch) -> Finding:
    severity: Severity = wrong.severity
    meaning = wrong.meaning
    if not m.loss_given:
        severity = "warning" if wrong.about_targets and severity != "info" else "info"
        meaning = f"the loss was assumed by gradcheck; if it is the one: {meaning}"
    place = f" (output of layer {call.producer_layer})" if call.producer_layer else ""
    return found(
        severity,
        f"{wrong.problem}{place}: {meaning}",
        layers=(call.producer_layer,) if call.producer_layer else (),
        location=call.producer_site or call.site or _site(m, call.producer_layer or "") or _head_site(m),
        evidence=wrong.evidence,
        remedies=wrong.remedies,
        confirmed=BY_VALUE if severity == "error" else "",
    )


def _constant_outputs(m: Measurement) -> list[Finding]:
    """Softmax over an axis of width 1 just before the loss, and cross entropy over one class."""
    constant = [c for c in m.losses if c.input_min == c.input_max and c.producer in ("softmax", "log_softmax", None)]
    unlearned = not m.losses and progress.verdict(m) in ("stalls", "unknown")
    findings = [
        _constant(
            f"{'log_softmax' if s.log else 'softmax'} over axis {s.axis} of shape {list(s.shape)}, which has 1 unit (at least 2 needed)",
            s.layer,
            s.site or _site(m, s.layer),
        )
        for s in m.softmaxes
        if s.to_loss and s.axis > 0 and len(s.shape) > s.axis and s.shape[s.axis] == 1 and (constant or unlearned)
    ]
    if findings:
        return findings
    single = [c for c in m.losses if c.function == "cross_entropy" and c.target_kind == "classes" and c.classes == 1]
    single += [c for c in constant if c.producer == "softmax" and c.input_shape[-1:] == (1,)]
    if not single or len(m.losses) > len(single):
        return []
    call, layer = single[0], single[0].producer_layer or ""
    what = f"{call.function} over 1 class (at least 2 needed; output {list(call.input_shape)})"
    return [_constant(what, layer, call.producer_site or call.site or _site(m, layer))]


def _site(m: Measurement, name: str) -> Location | None:
    layer = m.layer(name)
    return layer.site if layer else None


def _head_site(m: Measurement) -> Location | None:
    return next((x.site for x in reversed(m.layers) if x.head and x.site), None)


def _constant(what: str, layer: str, location: Location | None) -> Finding:
    place = f" in layer {layer}" if layer else ""
    return found(
        "error",
        f"{what}{place}: the output is constant whatever the weights are, every gradient is zero, and nothing can be learned",
        layers=(layer,) if layer else (),
        location=location,
        evidence=(Evidence("units on the class axis", 1, 2, "<"),),
        remedies=(
            Remedy(
                "remove-output-activation",
                "use a sigmoid with a binary loss: return the one logit, and use binary_cross_entropy_with_logits",
                "unsafe",
            ),
            Remedy("replace-loss", "or give the output one unit per class, and use cross_entropy on the logits", "unsafe"),
        ),
        confirmed=BY_VALUE,
    )


@rule(
    "LOSS002",
    "loss-domain",
    up_to="error",
    needs=("losses",),
    explains=("LOSS003", "LOSS005", "NUM001", "OPT001", "OPT002", "GRAPH004", "GRAD002", "GRAD004"),
)
def loss_domain(m: Measurement, limits: Limits) -> Verdict:
    """The loss function is called outside its domain, or on shapes that do not belong together.

    ## What it finds
    Class labels outside [0, classes); probabilities as targets outside [0, 1]; targets of another shape than the output
    that broadcast silently, as [N] against [N, 1] gives [N, N]; and a call that raises, with what it says.

    ## Why it matters
    Broadcasting compares every prediction with every target: the best such a model can do is to predict the mean target for
    all inputs. Binary cross entropy with targets outside [0, 1] has no lower bound.

    ## How it is measured
    At each call of a loss function: the range and shape of its target against its input; and arithmetic between tensors
    outside the model whose result is larger than both.

    ## Limits and their sources
    None: one label outside, or one result larger than both operands, counts. A target that is spread over the output's last
    axis only is a warning. A target without a batch axis is taken as meant.

    ## When to ignore it
    When the pairwise comparison of [N, 1] with [N] is meant; write it as `a[:, None] - b[None, :]`, and the rule is silent.

    ## Example
    ```python
    loss = nn.functional.mse_loss(model(x), y)  # [32, 1] against [32]
    ```

    ## Use instead
    ```python
    loss = nn.functional.mse_loss(model(x).squeeze(1), y)
    ```

    ## References
    PyTorch documentation: "Broadcasting semantics".
    """
    if not m.losses and not m.mixes:
        return not_applicable("no known loss function is called")
    findings = [f for f in (_outside_domain(m, c) for c in m.losses) if f is not None]
    for mix in m.mixes:
        if len(mix.left) != len(mix.right):
            findings.append(_pairwise(mix.operation, mix.left, mix.right, mix.result, "error", mix.site))
    return findings


def _outside_domain(m: Measurement, call: LossCall) -> Finding | None:
    if call.out_of_range:
        return _labels_outside(m, call)
    if call.broadcast is not None:
        severity = _broadcast_severity(call)
        return (
            None if severity is None else _pairwise(call.function, call.input_shape, call.target_shape, call.broadcast, severity, call.site)
        )
    if call.raised and not _says_output_loss_mismatch(call):
        return found(
            "error" if m.data.given else "warning",
            f"{call.function} raises on an input {list(call.input_shape)} and a target "
            f"{list(call.target_shape)} of {call.target_dtype or 'no type'}: {call.raised.rstrip('.')}",
            location=call.site,
            evidence=(Evidence("calls that raise", 1, 0, ">"),),
            remedies=(
                Remedy(
                    "replace-loss", f"give {call.function} the shapes and types that it takes, or use the loss that fits these", "advice"
                ),
            ),
            confirmed=BY_VALUE if m.data.given else "",
        )
    return None


def _says_output_loss_mismatch(call: LossCall) -> bool:
    """binary_cross_entropy raises on outputs outside [0, 1]: the finding of another rule."""
    return call.function == "binary_cross_entropy" and (call.input_min < 0 or call.input_max > 1)


def _labels_outside(m: Measurement, call: LossCall) -> Finding:
    total = math.prod(call.target_shape)
    if call.target_kind == "classes":
        domain, limit = f"class labels outside [0, {call.classes}), the {call.classes} outputs", float(call.classes or 0)
        remedy = Remedy("fix-labels", f"number the classes from 0 to {(call.classes or 1) - 1}, or give the model an output for each label")
    else:
        domain, limit = "targets outside [0, 1]", 1.0
        remedy = Remedy("fix-labels", "scale the targets into [0, 1], or use a loss for unbounded targets")
    low, high = call.target_min, call.target_max
    span = "" if low is None or high is None else f"; they reach from {number(low)} to {number(high)}"
    below = low is not None and low < 0
    worst = low if below and low is not None else (high if high is not None else math.nan)
    consequence = (
        f"the call raises: {call.raised.rstrip('.')}"
        if call.raised
        else "the loss of these samples has no meaning, and may fall without bound"
    )
    return found(
        "error" if m.data.given else "warning",
        f"{call.out_of_range} of {total} targets of {call.function} are {domain}{span}: {consequence}",
        location=call.site,
        evidence=(
            Evidence(
                "target furthest outside",
                worst,
                0.0 if below else limit,
                "<" if below else (">=" if call.target_kind == "classes" else ">"),
            ),
            Evidence("targets outside the domain", call.out_of_range, 0, ">", f"of {total}"),
        ),
        remedies=(remedy,),
        confirmed=BY_VALUE if m.data.given else "",
    )


def _broadcast_severity(call: LossCall) -> Severity | None:
    """Error when both sides grow; a warning when a target [N, 1] or [N] is spread over a larger output; None when it is meant."""
    result = math.prod(call.broadcast or ())
    left, right = math.prod(call.input_shape), math.prod(call.target_shape)
    if result > max(left, right):
        return "error"
    if left == right or min(left, right) == 1:
        return None
    smaller = call.target_shape if right < left else call.input_shape
    samples = call.input_shape[0] if call.input_shape else 1
    return "warning" if smaller[:1] == (samples,) and samples > 1 else None


def _pairwise(
    operation: str, left: Sequence[int], right: Sequence[int], result: Sequence[int], severity: Severity, location: Location | None
) -> Finding:
    meaning = "every prediction is compared with every target" if severity == "error" else "one target is compared with several outputs"
    best = "; the best prediction is then the mean target, whatever the input" if severity == "error" else ""
    grown = math.prod(result) / max(1, math.prod(left))
    return found(
        severity,
        f"{operation} between {list(left)} and {list(right)} broadcasts to {list(result)}: {meaning}{best}",
        location=location,
        evidence=(Evidence("entries of the result for each entry of the output", grown, 1, ">" if grown > 1 else "="),),
        remedies=(Remedy("match-shapes", "give both the same shape: squeeze the output's last axis, or unsqueeze the target", "unsafe"),),
        confirmed=BY_VALUE if severity == "error" else "",
    )


@rule(
    "LOSS003",
    "initial-loss",
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
        "steps": Limit(10, "steps", "heuristic: a head that is too loud but harmless is corrected within a few steps"),
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
    are not judged; nor are targets that a constant predicts almost perfectly.

    ## Limits and their sources
    `ratio` 3: warning, unless the probe comes within `near_chance` 1.5 times chance in its first `steps` 10; then advice.
    `strong_ratio` 10: warning in any case. Of 58 healthy architectures none starts above 1.54; MNASNet on 10 classes
    starts at 3.6 and trains (calibration E1 and E2). Never an error: SGD often recovers. On data that
    gradcheck made up, a regression loss is advice only.

    ## When to ignore it
    When the model was trained on other labels before, and when warm-up takes care of it.

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
    if not (math.isfinite(first) and first > limits["ratio"] * chance):
        return []
    ratio = first / chance
    start = [x for x in m.probe.losses[: int(limits["steps"]) + 1] if math.isfinite(x)]
    soon = next((i for i, x in enumerate(start) if x <= limits["near_chance"] * chance), None)
    made_up = not m.data.given and (not m.loss_given or any(c.function in REGRESSION_LOSSES for c in m.losses))
    severity: Severity = "info" if made_up or (soon is not None and ratio <= limits["strong_ratio"]) else "warning"
    course = f"it is near chance after {soon} steps" if soon is not None else f"after {len(start) - 1} steps it is {number(start[-1])}"
    head = next((x for x in reversed(m.layers) if x.head), None)
    name = head.name if head else "the last layer"
    return [
        found(
            severity,
            f"the first loss is {number(first)}, {number(ratio)} times that of a constant prediction "
            f"({number(chance)}; limit {number(limits['ratio'])} times): the model starts out confident and wrong; {course}",
            layers=(head.name,) if head else (),
            location=head.site if head and head.site else next((c.site for c in m.losses if c.site), None),
            evidence=(Evidence("first loss over that of a constant prediction", ratio, limits["ratio"], ">", "times"),),
            remedies=(
                Remedy(
                    "head-scaling",
                    f"multiply the initial weights of {name} by about {number(1 / ratio)}; zero its bias",
                    "safe",
                ),
            ),
        )
    ]


@rule(
    "LOSS004",
    "softmax-dimension",
    up_to="error",
    needs=("graph", "losses"),
    explains=("LOSS001", "LOSS003", "LOSS005", "GRAD004", "GRAPH007", "OPT001", "OPT002"),
)
def softmax_dimension(m: Measurement, limits: Limits) -> Verdict:
    """A softmax normalises over the batch, or over another axis than the classes.

    ## What it finds
    softmax and log_softmax over axis 0 where that is the batch (also where `dim` was left out and torch chose it), and over an axis other
    than the class axis of the loss that takes the result.

    ## Why it matters
    The probabilities of one sample then depend on which others are in its batch, and do not sum to 1 over the classes: the
    loss can be lowered without telling classes apart, and a single sample always gets probability 1.

    ## How it is measured
    The axis and shape of each call, whether its result goes to the loss by shape changes only, and, for `nll_loss` on
    outputs of more than two axes, how far the classes are from being normalised.

    ## Limits and their sources
    None: the wrong axis counts. An error on the way to the loss, a warning inside the model, where pooling over samples can be
    meant. An axis of width 1 is `output-loss-mismatch`. A square similarity matrix that is normalised
    over both axes (contrastive losses) is silent.

    ## When to ignore it
    When axis 0 is not the batch: an unbatched model, or a set that is pooled.

    ## Example
    ```python
    return nn.functional.log_softmax(logits, dim=0)
    ```

    ## Use instead
    ```python
    return nn.functional.log_softmax(logits, dim=1)
    ```

    ## References
    PyTorch documentation: `torch.nn.functional.softmax`.
    """
    if not m.softmaxes:
        return not_applicable("no softmax is called")
    findings = []
    for s in m.softmaxes:
        if s.axis >= len(s.shape) or s.shape[s.axis] <= 1:
            continue
        if s.over_batch and not _contrastive(s, m.softmaxes):
            findings.append(_over_batch(m, s))
        elif not s.over_batch and (call := _loss_of_other_axis(s, m.losses)) is not None:
            findings.append(_over_wrong_axis(m, s, call))
    return findings


def _contrastive(s: Softmax, every: Sequence[Softmax]) -> bool:
    square = len(s.shape) == 2 and s.shape[0] == s.shape[1]
    return square and any(o.axis == 1 and o.shape == s.shape for o in every)


def _loss_of_other_axis(s: Softmax, calls: Sequence[LossCall]) -> LossCall | None:
    """The nll_loss that takes this result over axis 1 although it is normalised over another."""
    if not s.to_loss or len(s.shape) < 3 or s.axis == 1:
        return None
    return next((c for c in calls if c.function == "nll_loss" and c.input_shape == s.shape and (c.row_logsumexp_error or 0.0) > 0.01), None)


def _over_batch(m: Measurement, s: Softmax) -> Finding:
    name = "log_softmax" if s.log else "softmax"
    how = "dim was not given, and torch takes axis 0" if s.implicit else "dim=0"
    error = s.to_loss
    meaning = (
        "the outputs of a sample do not sum to 1 over the classes, and depend on the other samples"
        if error
        else "samples of a batch influence each other"
    )
    last = len(s.shape) - 1
    return found(
        "error" if error else "warning",
        f"{name} on {list(s.shape)} normalises over the {s.shape[0]} samples of the batch ({how}; expected 1 or higher): {meaning}",
        layers=(s.layer,),
        location=s.site or _site(m, s.layer),
        evidence=(Evidence("axis of the softmax", s.axis, 1, "<"),),
        remedies=(Remedy("fix-softmax-dimension", f"pass dim={1 if last == 1 else -1}", "unsafe"),),
        confirmed=BY_VALUE if error else "",
    )


def _over_wrong_axis(m: Measurement, s: Softmax, call: LossCall) -> Finding:
    name = "log_softmax" if s.log else "softmax"
    return found(
        "error",
        f"{name} on {list(s.shape)} normalises over axis {s.axis}, but {call.function} takes the classes from axis 1 (expected 1): "
        f"log-probabilities do not add up over the {s.shape[1]} classes, and the loss falls without telling them apart",
        layers=(s.layer,),
        location=s.site or _site(m, s.layer),
        evidence=(Evidence("largest distance of a row's logsumexp from 0", call.row_logsumexp_error or 0.0, 0.01, ">"),),
        remedies=(Remedy("fix-softmax-dimension", "pass dim=1", "unsafe"),),
        confirmed=BY_VALUE,
    )


@rule(
    "LOSS005",
    "loss-not-falling",
    up_to="error",
    needs=("probe",),
    wants=("baseline",),
    limits={
        "explained": Limit(0.1, "of the variance", "heuristic: what a linear model finds beyond this is no accident of the split"),
        "fall": Limit(0.1, "of the loss", "calibration E16: 12 of 12 healthy nets lose 95 % within 155 steps"),
        "slow_fall": Limit(0.5, "of the loss", "calibration E16, halfway: the frequencies of a few labels alone give 10 to 30 %"),
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
    ridge regression of the targets on the flattened inputs, judged on a fifth of the samples that it was not fitted on.

    ## Limits and their sources
    The probe, and a run at another rate, learns when its loss falls by 10 %, or by 2 % beyond its noise. On one
    batch, the fall is taken below the first loss or below the batch's best constant prediction, whichever is lower.
    `fall` 0.1: less is an error. `slow_fall` 0.5: less is a warning, or advice where it is known to be more than
    label frequencies alone give. Calibration E16: 12 of 12 healthy nets take 9 to 155 steps to 5 % of the initial
    loss, so a miss at both rates is a fault. `steps` 50: shorter runs (a spent time budget) make it a warning.
    `explained` 0.1: from this share of the targets' variance on, beyond what shuffled targets give, the data hold
    something. `plateau` 0.02: the loss is said to be at a known level when it is this close to it. It is a warning,
    too, on data or a loss that gradcheck assumed, for a model that was trained before, and for one that starts
    below half of chance.

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
    verdict = progress.verdict(m)
    if verdict == "unknown":
        return not_measured(f"the probe ended after {len(m.probe.losses)} steps{': ' + m.probe.error if m.probe.error else ''}")
    if verdict == "learns" or progress.best_experiment(m) is not None:
        return []
    overfits = [r for r in m.experiments if r.rate_factor is None and r.batches == 1]
    tried = [r for r in overfits if progress.experiment_outcome(r, m) != "unknown"]
    if not tried:
        return not_measured("no training on one batch was run" if not overfits else "the trainings on one batch were too short")
    if any(r.ended == "learned" or progress.fall(r, r.chance) >= limits["slow_fall"] for r in tried):
        return _behind_a_linear_model(m, limits)
    return [_not_falling(m, tried, limits)]


def _behind_a_linear_model(m: Measurement, limits: Limits) -> list[Finding]:
    """The model can memorise a few samples, and learns nothing of data in which a linear model finds something."""
    b, sure = m.baseline, m.data.given and m.loss_given and not m.pretrained and m.optimizer.given
    if b is None or b.explained - max(0.0, b.shuffled) < limits["explained"] or len(m.probe.losses) < progress.PATIENCE:
        return []
    course = f"{len(m.probe.losses)} steps with {m.optimizer.name} bring the loss no clear way below chance"
    tried = ", nor does any other rate that was tried" if any(r.rate_factor not in (None, 1) for r in m.experiments) else ""
    message = (
        f"the model does not learn what is in the data: {course}{tried}; a linear model on the raw inputs explains "
        f"{percent(b.explained)} of the targets' variance on held-out samples ({percent(max(0.0, b.shuffled))} when they are shuffled)"
    )
    evidence = (
        Evidence("relative fall of the loss in the probe", progress.fall(m.probe, m.chance), progress.CLEAR_FALL, "<"),
        Evidence("explained by a linear model on held-out samples", b.explained, limits["explained"], ">=", "of the variance"),
    )
    text = "start from a smaller model that learns, and add to it what keeps it learning"
    confirmed = f"by the probe: {course}" if sure else ""
    place = next((c.site for c in m.losses if c.site), None) or _head_site(m)
    remedies = (Remedy("check-data-path", text),)
    return [found("error" if sure else "warning", message, location=place, evidence=evidence, remedies=remedies, confirmed=confirmed)]


def _not_falling(m: Measurement, tried: Sequence[Run], limits: Limits) -> Finding:
    best = max(tried, key=lambda r: progress.fall(r, r.chance))
    start, end, _ = progress.start_and_end(best)
    fall = progress.fall(best, best.chance)
    below = m.chance is not None and 0 < m.probe.losses[0] < 0.5 * m.chance
    long = any(len(r.losses) >= limits["steps"] or r.ended == "non-finite" for r in tried)
    sure = m.data.given and m.loss_given and not m.pretrained and not below and long and fall < limits["fall"]
    limit = limits["fall"] if sure else limits["slow_fall"]
    beyond_frequencies = best.chance is not None and fall >= limits["fall"]  # slow, as a head on a frozen body is, but it learns
    severity: Severity = "error" if sure else "info" if beyond_frequencies else "warning"
    rates = ", ".join(r.name.removesuffix(" on one batch") for r in tried)
    course = f"{len(best.losses)} steps move it from {number(start)} to {number(end)}" if math.isfinite(fall) else "it becomes non-finite"
    over = "the best constant prediction" if best.chance is not None and best.chance < start else "the first loss"
    fallen = (
        f", {number(100 * abs(fall))} % {'below' if fall >= 0 else 'above'} {over} (needed: {number(100 * limit)} % below)"
        if math.isfinite(fall)
        else ""
    )
    plateau = _known_level(m, best, end, limits["plateau"])
    probe = "diverges" if progress.verdict(m) == "diverges" else "stalls"
    return found(
        severity,
        f"the loss does not fall at any learning rate tried, not even on one small batch: at best ({rates}) {course}{fallen}"
        f"{'; ' + plateau if plateau else ''}: what the model should learn does not reach its weights",
        location=next((c.site for c in m.losses if c.site), None) or _head_site(m),
        evidence=(Evidence("relative fall of the loss on one batch", fall, limit, "<"),),
        remedies=(
            Remedy(
                "check-data-path",
                "follow one batch by hand: from the input to the output, from the labels to the loss, from the loss to the gradients",
            ),
        ),
        confirmed=f"by the probe: it {probe} with {m.optimizer.name}, and so do all {len(m.experiments)} experiments" if sure else "",
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


RULES = (output_loss_mismatch, loss_domain, initial_loss, softmax_dimension, loss_not_falling)
