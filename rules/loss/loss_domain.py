import math
from collections.abc import Sequence

from gradcheck.analysis.wording import BY_VALUE, number
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.location import Location
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule


@rule(
    "LOSS002",
    up_to="error",
    needs=("losses",),
    wants=("dependence",),
    explains=("LOSS003", "LOSS005", "NUM001", "OPT001", "OPT007", "OPT002", "GRAPH004", "GRAD002", "GRAD004"),
)
def loss_domain(m: Measurement, limits: Limits) -> Verdict:
    """The loss function is called outside its domain, or on shapes that do not belong together.

    ## What it finds
    Class labels outside [0, classes); probabilities as targets outside [0, 1]; labels of CTC that are its blank; targets of
    another shape than the output that broadcast silently, as [N] or [1, N] against [N, 1] gives [N, N]; and a call that raises, with
    what it says.

    ## Why it matters
    Broadcasting compares every prediction with every target: the best such a model can do is to predict the mean target for
    all inputs. Binary cross entropy with targets outside [0, 1] has no lower bound.

    ## How it is measured
    At each call of a loss function: the range and shape of its target against its input; and arithmetic between tensors
    outside the model whose result is larger than both. [N, 1] with [1, N] may be meant: only where the loss stays the same when the
    model's inputs are shuffled against their targets it counts.

    ## Limits and their sources
    None: one label outside, or one result larger than both operands, counts. A target that is spread over the output's last
    axis only is a warning. A target without a batch axis is taken as meant.

    ## When to ignore it
    When the pairwise comparison of [N, 1] with [N] is intended; write it as `a[:, None] - b[None, :]`, and the rule is silent.

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
        if len(mix.left) != len(mix.right) or (m.dependence is not None and m.dependence.unpaired):
            severity: Severity = "error" if len(mix.left) != len(mix.right) else "warning"
            findings.append(_pairwise(mix.operation, mix.left, mix.right, mix.result, severity, mix.site))
    return findings


def _outside_domain(m: Measurement, call: LossCall) -> Finding | None:
    if call.out_of_range and call.function == "ctc_loss":
        return _blank_labels(call)
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
            evidence=Evidence("calls that raise", 1, 0, ">"),
            remedies=Remedy(
                "replace-loss", f"give {call.function} the shapes and types that it takes, or use the loss that fits these", "advice"
            ),
            confirmed=BY_VALUE,
        )
    return None


def _blank_labels(call: LossCall) -> Finding:
    total = math.prod(call.target_shape)
    return found(
        "error",
        f"{call.out_of_range} of {total} labels of ctc_loss are its blank (limit 0): what is blank cannot be read, so these labels are "
        "never learned, nor do those beside them stand where they belong",
        location=call.site,
        evidence=(Evidence("labels that are the blank", call.out_of_range, 0, ">", f"of {total}"),),
        remedies=(Remedy("fix-labels", "number the labels from 1, or give CTCLoss a blank that is no label, as blank=number_of_labels"),),
        confirmed=BY_VALUE,
    )


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
        remedies=remedy,
        confirmed=BY_VALUE,
    )


def _broadcast_severity(call: LossCall) -> Severity | None:
    """Error when both sides grow; a warning when a target [N, 1] or [N] is spread over a larger output; None when it is intended."""
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
    grown = math.prod(result) / max(1, math.prod(left))
    every = math.prod(result) > max(math.prod(left), math.prod(right))
    meaning = "every prediction is compared with every target" if every else "one target is compared with several outputs"
    best = "; the best prediction is then the mean target, whatever the input" if every else ""
    return found(
        severity,
        f"{operation} between {list(left)} and {list(right)} broadcasts to {list(result)}: {meaning}{best}",
        location=location,
        evidence=Evidence("entries of the result for each entry of the output", grown, 1, ">" if grown > 1 else "="),
        remedies=Remedy("match-shapes", "give both the same shape: squeeze the output's last axis, or unsqueeze the target", "unsafe"),
        confirmed=BY_VALUE,
    )
