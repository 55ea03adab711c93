"""LOSS: the loss, and what it is handed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gradcheck.analysis import convergence
from gradcheck.analysis.layer_groups import head_site, layer_site
from gradcheck.analysis.wording import BY_VALUE, number
from gradcheck.rules.outputs import Mismatch, mismatch
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

if TYPE_CHECKING:
    from gradcheck.types.location import Location
    from gradcheck.types.measurement import LossCall, Measurement


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
        location=call.producer_site or call.site or layer_site(m, call.producer_layer or "") or head_site(m),
        evidence=wrong.evidence,
        remedies=wrong.remedies,
        confirmed=BY_VALUE if severity == "error" else "",
    )


def _constant_outputs(m: Measurement) -> list[Finding]:
    """Softmax over an axis of width 1 just before the loss, and cross entropy over one class."""
    constant = [c for c in m.losses if c.input_min == c.input_max and c.producer in ("softmax", "log_softmax", None)]
    unlearned = not m.losses and convergence.training_outcome(m) in ("stalls", "unknown")
    findings = [
        _constant(
            f"{'log_softmax' if s.log else 'softmax'} over axis {s.axis} of shape {list(s.shape)}, which has 1 unit (at least 2 needed)",
            s.layer,
            s.site or layer_site(m, s.layer),
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
    return [_constant(what, layer, call.producer_site or call.site or layer_site(m, layer))]


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


RULES = (output_loss_mismatch, loss_domain)
