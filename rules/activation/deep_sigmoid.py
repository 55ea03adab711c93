from gradcheck.analysis.activations import SIGMOID_LIKE
from gradcheck.analysis.convergence import any_learned, training_outcome
from gradcheck.analysis.depth import gradient_trend, over_nets
from gradcheck.analysis.layer_groups import BODY_KINDS, body, gate_makers, hidden_activations, in_order, names
from gradcheck.analysis.wording import BY_VALUE, layers_in_words, number, probe_failure
from gradcheck.rules import cures
from gradcheck.types.finding import Evidence, Severity
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


def sigmoid_stacks(m: Measurement) -> list[list[Layer]]:
    """Hidden sigmoid-like activations in a row, a layer with weights before each, without normalization or bypass between."""
    hidden = hidden_activations(m, SIGMOID_LIKE)
    stacks: list[list[Layer]] = [[]]
    weighted, depth = False, 0
    for x in in_order(m):
        beside = x.kind in BODY_KINDS and x.depth is not None and x.depth <= depth  # the first of another branch
        if x.kind == "norm" or x.normalized or x.residual or beside:
            stacks.append([])
        if x.kind in BODY_KINDS:
            weighted, depth = True, x.depth or 0
        elif weighted and x in hidden:
            stacks[-1].append(x)
            weighted = False
    shared = {x.function for x in hidden if x.calls > 1}
    return [*stacks, *_stacks_behind(m, shared)] if shared else stacks


def _stacks_behind(m: Measurement, functions: set[str | None]) -> list[list[Layer]]:
    """The same for activations that one module or one line applies many times, told by the layers with weights before each."""
    gates = gate_makers(m)
    stacks: list[list[Layer]] = [[]]
    depth = 0
    for x in in_order(m):
        weighted = x.kind in BODY_KINDS
        if weighted and x.depth is not None and x.depth <= depth:
            stacks.append([])  # beside the last
        if weighted and x.activation in functions and x.name not in gates and not x.normalized and not x.residual:
            stacks[-1].append(x)
        elif weighted or x.kind == "norm":
            stacks.append([])
        depth = (x.depth or 0) if weighted else depth
    return stacks


@rule(
    "ACT003",
    up_to="error",
    needs=("graph", "signals", "probe"),
    limits={
        "stacked": Limit(4, "layers", "0 of 13 such networks train as they are, or after data-driven rescaling"),
        "error_total": Limit(6.0, "decades", "96 of 96 random networks whose gradient changes by 6 decades or more fail at every rate"),
    },
    explains=("GRAD001", "ACT001", "ACT004", "INIT001", "INIT002", "INIT007", "OPT001", "OPT007", "OPT002", "GRAPH008", "LOSS005"),
)
def deep_sigmoid(m: Measurement, limits: Limits) -> Verdict:
    """Four or more sigmoid-like hidden layers in a row without normalisation.

    ## What it finds
    Stacks of sigmoid, softplus, hardsigmoid or logsigmoid layers with neither normalization nor a residual
    connection between them. Gates, squeeze-and-excitation and output activations do not count.

    ## Why it matters
    A sigmoid's derivative is at most 0.25 and its output is never centred: each layer divides the gradient by 5
    or more, and pulls all samples towards one point. No initialisation cures it (0 of 13 networks; data-driven
    scaling 0 of 13).

    ## How it is measured
    From the order of layers in the forward pass. The gradient's trend over depth is measured before the first
    step.

    ## Limits and their sources
    `stacked` 4 layers: a warning. An error when the probe training fails, or when the gradient shrinks by
    `error-total` 6 decades and the probe does not learn.

    ## When to ignore it
    When the stack trains well enough in the time you have.

    ## Example
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(6)]
    ```

    ## Use instead
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)]  # with kaiming_normal_
    ```

    ## References
    Glorot and Bengio 2010; Schoenholz et al. 2016.
    """
    return over_nets(m, lambda net: _stacked(net, limits))


def _stacked(m: Measurement, limits: Limits) -> Verdict:
    if not hidden_activations(m, SIGMOID_LIKE):
        return not_applicable("no hidden sigmoid-like layer")
    stack = max(sigmoid_stacks(m), key=len)
    if len(stack) < limits["stacked"]:
        return []
    trend = gradient_trend(m, 0)
    failure = probe_failure(m)
    steep = trend.slope > 0 and trend.total >= limits["error_total"] and training_outcome(m) != "learns" and not any_learned(m)
    function = stack[0].function or stack[0].activation or "sigmoid"
    size = f"; the gradient shrinks by {number(trend.total)} decades on the way" if trend.slope > 0 and trend.n >= 2 else ""
    means = "no initialisation carries a gradient through them" if failure or steep else "they learn slowly, if at all"
    message = (
        f"{len(stack)} {function} layers in a row without normalization (limit {number(limits['stacked'])}): "
        f"{layers_in_words(names(stack))}{size}: {means}"
    )
    evidence = [Evidence("sigmoid-like layers in a row", len(stack), limits["stacked"], ">=", "layers", stack[0].name)]
    if trend.n >= 2:
        evidence.append(Evidence("change of the gradient over depth", trend.total, limits["error_total"], ">=", "decades", stack[0].name))
    severity: Severity = "error" if failure or steep else "warning"
    remedies = (cures.other_activation(function), *cures.normalise(m, body(m)))
    confirmed = failure or (BY_VALUE if steep else "")
    return [
        found(severity, message, layers=names(stack), location=stack[0].site, evidence=evidence, remedies=remedies, confirmed=confirmed)
    ]
