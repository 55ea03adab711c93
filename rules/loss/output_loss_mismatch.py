import math
from dataclasses import replace

from gradcheck.analysis import convergence
from gradcheck.analysis.layer_groups import head_site, layer_site
from gradcheck.analysis.wording import BY_VALUE, number, quoted
from gradcheck.rules.outputs import Mismatch, mismatch
from gradcheck.types.checks import LossOperation
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.location import Location
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "LOSS001",
    up_to="error",
    needs=("losses",),
    limits={
        "row_sum_error": Limit(1e-4, "", "float32 softmax rows sum to 1 within 1e-6"),
        "logsumexp_error": Limit(0.01, "", "log_softmax rows have logsumexp 0 within 1e-5; untrained logits are off by about log(classes)"),
        "floor_share": Limit(0.5, "of the loss at chance", "heuristic: a bounded logit is an error when most of the loss is out of reach"),
        "target_excess": Limit(0.1, "of the targets' std", "heuristic: smaller excesses are rounding or single values"),
        "smallest_share": Limit(
            1e-5, "", "heuristic: shares are clamped at 1e-6 to 1e-8; one that an added constant keeps larger has a gradient"
        ),
        "target_share": Limit(0.1, "of the targets", "heuristic: an error when a good share of targets is out of reach"),
    },
    explains="GRAD004 GRAD001 GRAD002 LOSS003 GRAPH008 LOSS005 ACT001 ACT002 OPT001 OPT007 OPT002 GRAPH004".split(),
)
def output_loss_mismatch(m: Measurement, limits: Limits) -> Verdict:
    """The model's output is not what the loss function expects.

    ## What it finds
    Softmax, sigmoid or ReLU before `cross_entropy`; sigmoid before `binary_cross_entropy_with_logits`; logits or
    probabilities into `nll_loss`, `kl_div` or `ctc_loss`; unbounded outputs into `binary_cross_entropy`; the logarithm of a
    ReLU's shares of their sum; a softmax over labels of which several may be right; cosine similarities that nothing scales into
    `cross_entropy`; softmax over a single unit, which is constant; and a ReLU, sigmoid or tanh on an output whose
    targets lie outside its range.

    ## Why it matters
    Nothing raises, and the loss may even fall, but it cannot reach its minimum. Cross entropy of softmax outputs stops at
    -1 + log(e + C - 1): at 1.46 of 2.30 for 10 classes, at 3.62 of 4.61 for 100.

    ## How it is measured
    At each call of a loss function: the function that made its input, the input's range, how far rows are from summing
    to 1 (or from a logsumexp of 0), and the range of the targets. ReLU and sigmoid are judged by the function that made
    the input, never by the range alone.

    ## Limits and their sources
    `row-sum-error` 1e-4: rows that are not negative and sum to 1 this closely are probabilities.
    `logsumexp-error` 0.01: rows further from 0 than this are not normalised log-probabilities.
    `floor-share` 0.5: tanh before `cross_entropy` is a warning while the lowest loss that it allows,
    log(1 + (C - 1) exp(-2)), is below this share of log C, an error above it.
    `target-excess` 0.1 and `target-share` 0.1: targets this many standard deviations outside an output's range count, and
    are an error when this share of all targets (estimated from their mean and standard deviation) is out of reach.
    A softmax before `binary_cross_entropy` is one when more than this share of the rows of targets do not sum to 1.
    Cosines lie between -1 and 1, too: `cross_entropy` of them is a warning where `floor-share` of the loss is out of reach, else advice.
    `smallest-share` 1e-5: a ReLU's share of its sum below it is one of a unit that is off.
    `log_softmax` before `cross_entropy` changes nothing and is advice. When the loss was assumed by gradcheck, all of this is
    advice (a warning for targets out of range), except for a constant output.

    ## When to ignore it
    When a bounded output is used as a regularizer and its floor is accepted.

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
    shares = [o for o in m.loss_operations if o.of == "shares"]
    if not m.losses and not m.softmaxes and not shares:
        return not_applicable("no known loss function is called")
    findings = [*_constant_outputs(m), *(_log_of_shares(o, limits) for o in shares if (o.minimum or 0.0) < limits["smallest_share"])]
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
    place = f" (output of layer {quoted(call.producer_layer)})" if call.producer_layer else ""
    return found(
        severity,
        f"{wrong.problem}{place}: {meaning}",
        layers=(call.producer_layer,) if call.producer_layer else (),
        location=call.producer_site or call.site or layer_site(m, call.producer_layer or "") or head_site(m),
        evidence=wrong.evidence,
        remedies=wrong.remedies,
        confirmed=BY_VALUE,
    )


def _log_of_shares(o: LossOperation, limits: Limits) -> Finding:
    """Probabilities that a ReLU makes: a class is at 0, or not, and at 0 no gradient reaches it."""
    low = o.minimum or 0.0
    return found(
        "error",
        f"the loss takes the logarithm of a ReLU's outputs over their sum, as if they were probabilities; the smallest is {number(low)} "
        "in the first step: a class whose unit is off has a huge loss there, and no gradient that would lower it",
        location=o.site,
        evidence=Evidence("smallest share", low, limits["smallest_share"], "<"),
        remedies=Remedy(
            "replace-loss", "let a softmax make the probabilities, or hand the values before the ReLU to cross_entropy", "unsafe"
        ),
        confirmed=BY_VALUE,
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
    place = f" in layer {quoted(layer)}" if layer else ""
    return found(
        "error",
        f"{what}{place}: the output is constant whatever the weights are, every gradient is zero, and nothing can be learned",
        layers=(layer,) if layer else (),
        location=location,
        evidence=Evidence("units on the class axis", 1, 2, "<"),
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
