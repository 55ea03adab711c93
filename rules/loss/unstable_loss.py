from gradcheck.analysis.wording import number, quoted
from gradcheck.types.checks import LossOperation
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

# What is wrong, and what to write instead, for operations that are unstable whatever their present values.
UNSTABLE = {
    ("log", "softmax"): (
        "takes the logarithm of softmax probabilities, which become exactly 0 for logits 104 below the largest",
        "use F.log_softmax(logits, dim) in place of log(softmax(logits)), or F.cross_entropy on the logits",
    ),
    ("log", "sigmoid"): (
        "takes the logarithm of a sigmoid, or of 1 minus one, which is exactly 0 for logits beyond 17",
        "use F.logsigmoid(z) for log(sigmoid(z)) and F.logsigmoid(-z) for log(1 - sigmoid(z)), or F.binary_cross_entropy_with_logits",
    ),
    ("log", "sum of exponentials"): (
        "takes the logarithm of exponentials of a layer's output, which are infinite for outputs above 88",
        "use torch.logsumexp, or F.softplus for log(1 + exp(z)): they subtract the largest value first",
    ),
    ("division", "sum of exponentials"): (
        "divides by a sum of exponentials of a layer's output, which are infinite for outputs above 88",
        "use torch.softmax in place of exp(z) / exp(z).sum(): it subtracts the largest value first",
    ),
    ("log", "output"): (
        "takes the logarithm of a layer's output that nothing keeps positive",
        "predict the logarithm itself, or take log of F.softplus(z) + 1e-6",
    ),
    ("division", "output"): (
        "divides by a layer's output that nothing keeps away from 0 and that has both signs",
        "divide by F.softplus(z) + 1e-6, or by the target instead of the prediction",
    ),
}
NEAR = {
    "log": ("the argument of a logarithm comes down to", "log(x + 1e-8), or log of clamp(x, min=1e-8)"),
    "division": ("a denominator comes down to", "a denominator with + 1e-8, or clamped away from 0"),
    "exp": ("the argument of an exponential comes up to", "exp of clamp(x, max=20), or logarithms throughout"),
}


@rule(
    "LOSS006",
    up_to="warning",
    needs=("losses",),
    limits={
        "smallest_argument": Limit(1e-6, "", "heuristic: ten times what float32 resolves beside 1 (1.2e-7)"),
        "largest_exponent": Limit(30.0, "", "heuristic: exp(30) = 1e13; float32 overflows at 88, its square at 44"),
    },
    explains=("NUM002",),
)
def unstable_loss(m: Measurement, limits: Limits) -> Verdict:
    """The loss is computed in a way that leaves the range of floating-point numbers.

    ## What it finds
    After the last weighted layer: a logarithm of softmax or sigmoid outputs, logarithms and quotients of sums of exponentials
    from which the largest value was not subtracted, logarithms of and divisions by an output that may be 0, and arguments that
    are near the edge already.

    ## Why it matters
    It works until the model is sure of itself: then a probability is exactly 0, its logarithm minus infinity, and the next
    step turns every weight into NaN. Gradients are wrong before that.

    ## How it is measured
    From the operations of the first step that no weighted layer follows, and the autograd graph behind their arguments. A
    clamp, a maximum or an added constant on the way counts as a guard.

    ## Limits and their sources
    None for the forms above: they are unstable for any weights. Other logarithms and divisions are reported when their
    argument (a denominator's absolute value) is below `smallest-argument` 1e-6 in the first step, other exponentials when theirs
    is above `largest-exponent` 30; both are heuristics.

    ## When to ignore it
    When the training is short and in float64.

    ## Example
    ```python
    loss = -torch.log(torch.softmax(logits, dim=1))[rows, target].mean()
    ```

    ## Use instead
    ```python
    loss = F.cross_entropy(logits, target)
    ```

    ## References
    Goodfellow, Bengio and Courville 2016, Deep Learning, section 4.1. Blanchard, Higham and Higham 2021, Accurately computing
    the log-sum-exp and softmax functions.
    """
    if not m.loss_operations:
        return not_applicable("no logarithm, exponential or division without a guard after the last layer")
    findings: dict[object, Finding] = {}
    for operation in m.loss_operations:
        if operation.of == "shares":  # guarded or not, what is wrong is the ReLU: LOSS001
            continue
        finding = _by_form(operation) or _by_value(operation, limits)
        if finding is not None:
            findings.setdefault((operation.site.file, operation.site.line) if operation.site else None, finding)
    return list(findings.values())


def _place(o: LossOperation) -> str:
    return f" (in {quoted(o.layer)})" if o.layer else ""


def _layers(o: LossOperation) -> tuple[str, ...]:
    return (o.layer,) if o.layer else ()


def _by_form(o: LossOperation) -> Finding | None:
    unstable = UNSTABLE.get((o.operation, o.of))
    if unstable is None:
        return None
    what, cure = unstable
    low = o.minimum if o.minimum is not None else 0.0
    return found(
        "warning",
        f"the loss{_place(o)} {what}; its smallest argument is {number(low)} in the first step: one exact 0 or infinity makes "
        "the loss and all weights NaN",
        layers=_layers(o),
        location=o.site,
        evidence=Evidence(f"smallest argument of the {o.operation}", low, None, "="),
        remedies=Remedy("stable-loss", cure, "safe"),
    )


def _by_value(o: LossOperation, limits: Limits) -> Finding | None:
    exponential = o.operation == "exp"
    value = o.maximum if exponential else o.minimum
    limit = limits["largest_exponent" if exponential else "smallest_argument"]
    if value is None or value != value or not (value > limit if exponential else value < limit):
        return None
    what, cure = NEAR[o.operation]
    return found(
        "warning",
        f"in the loss{_place(o)}, {what} {number(value)} in the first step (limit {number(limit)}): its result or its gradient "
        "is about to leave the range of float32",
        layers=_layers(o),
        location=o.site,
        evidence=Evidence(f"argument of the {o.operation}", value, limit, ">" if exponential else "<"),
        remedies=Remedy("guard-domain", f"write {cure}", "safe"),
    )
