import math

from gradcheck.analysis.layer_groups import layer_site
from gradcheck.analysis.wording import learns_clearly, number
from gradcheck.types.checks import Dependence
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule

ORDER = 1e-4  # as in measure/checks/dependence.py


@rule(
    "GRAPH008",
    up_to="warning",
    needs=("dependence", "probe"),
    limits={
        "effect": Limit(1e-6, "of the output", "float32's rounding, ten times over"),
        "effect_learned": Limit(1e-4, "of the output", "heuristic: a ten-thousandth of the output varies with the input"),
        "standard_errors": Limit(2.0, "standard errors", "usual two-sided test at 5 %"),
    },
    explains=("LOSS005", "OPT001", "OPT007", "OPT002"),
)
def input_ignored(m: Measurement, limits: Limits) -> Verdict:
    """The output hardly depends on the input.

    ## What it finds
    Models whose output stays the same when samples are replaced by others: the input is overwritten, multiplied by
    zero, cut off, or read where it holds nothing (padding). One of several inputs on which parameters work, and whose result nothing uses:
    another variable stands where it belongs. A result that a statement throws away, as of `masked_fill` in place of
    `masked_fill_`. Sequences whose order makes no difference although a table of positions is
    read, where one row of it is added to all positions.

    ## Why it matters
    Such a model can learn the average of its targets and no more, and its loss still falls at first.

    ## How it is measured
    After the probe training, in evaluation mode: samples of a batch are replaced by others, and the change of their output
    is taken relative to the output. When that is small, so in training mode as well, the loss is also measured with the
    inputs of each batch shuffled against its targets, in eight orders. Where a row of a table as long as the sequences is chosen by a
    number of the program and added to all positions, the output is taken once more with the positions in another order. Of several inputs
    each is replaced alone: where all outputs and the loss are the same bit for bit, the last result that depends on it and on parameters is
    named, if no operation takes it.

    ## Limits and their sources
    A warning when replacing samples changes the output by less than `effect` 0.000001 of its size (float32's rounding, ten
    times over). Also when the probe learned, the change is below `effect-learned` 0.01 % (heuristic), and
    the loss of shuffled inputs is no more than `standard-errors` 2 standard deviations above the true one.

    ## When to ignore it
    When the model is unconditional on purpose, such as a learned constant or a density without inputs.

    ## Example
    ```python
    hidden = self.encoder(torch.zeros_like(x))
    return self.head(hidden)
    ```

    ## Use instead
    ```python
    hidden = self.encoder(x)
    return self.head(hidden)
    ```

    ## References
    Karpathy 2019, A Recipe for Training Neural Networks: input-independent baseline.
    """
    d = m.dependence
    if d is not None and d.unordered:
        return [_unordered(m, d)]
    if d is not None and (d.lost or d.dropped):
        return [_lost(m, d)]
    if d is None or d.input_effect is None:
        return not_measured("samples could not be told apart in the model's input and output")
    none = d.input_effect < limits["effect"]
    little = d.input_effect < limits["effect_learned"] and learns_clearly(m) and _as_good_shuffled(d, limits["standard_errors"])
    if not none and not little:
        return []
    limit = limits["effect" if none else "effect_learned"]
    shuffled = ""
    if d.trained_loss is not None and d.shuffled_loss is not None:
        shuffled = f"; the loss is {number(d.trained_loss)}, and {number(d.shuffled_loss)} with the inputs shuffled"
    message = (
        f"output hardly depends on the input: replacing samples by others changes it by {number(d.input_effect)} of its size "
        f"(limit {number(limit)}){shuffled}: only the average of the targets can be learned"
    )
    evidence = Evidence("change of the output when the input changes", d.input_effect, limit, "<", "of the output")
    cure = Remedy("use-input", "follow the input through the forward method to where its values are lost, and use them", "unsafe")
    return [found("warning", message, evidence=evidence, remedies=cure)]


def _unordered(m: Measurement, d: Dependence) -> Finding:
    return found(
        "warning",
        f"the order of a sequence does not change the output (limit {number(ORDER)}): one row of a table of positions is added to all "
        "of them, so that none can be told from another",
        layers=(d.layer,) if d.layer else (),
        location=d.site or layer_site(m, d.layer),
        evidence=Evidence("change of the output when the positions change places", 0.0, ORDER, "<=", "of the output"),
        remedies=Remedy("check-arguments", "take a row for each position: table[:, :length], with the colon", "advice"),
    )


def _lost(m: Measurement, d: Dependence) -> Finding:
    if d.dropped:
        return found(
            "warning",
            f"the result of {d.operation} is used by nothing (0 variables take it): {d.operation} returns a new tensor and leaves the one "
            "that it is called on as it was",
            layers=(d.layer,),
            location=d.site or layer_site(m, d.layer),
            evidence=[Evidence("uses of the result", 0.0, 1.0, "<")],
            remedies=[
                Remedy("check-arguments", f"take the result, x = x.{d.operation}(...), or call {d.operation}_ if there is one", "advice")
            ],
        )
    return found(
        "warning",
        f"what is computed here of one of the model's inputs, the result of {d.operation}, is used by nothing (change of the outputs "
        "and of the loss when that input changes: 0): another variable stands where it belongs",
        layers=(d.layer,) if d.layer else (),
        location=d.site or layer_site(m, d.layer),
        evidence=[Evidence("change of the output when this input changes", 0.0, 0.0, "<=", "of the output")],
        remedies=[
            Remedy(
                "check-arguments",
                "follow it through the lines below: the variable that stands in its place, or the call that drops it",
                "advice",
            )
        ],
    )


def _as_good_shuffled(d: Dependence, errors: float) -> bool:
    if d.trained_loss is None or d.shuffled_loss is None or d.standard_error is None:
        return False
    if not (math.isfinite(d.trained_loss) and math.isfinite(d.shuffled_loss)):
        return False
    return d.shuffled_loss - d.trained_loss <= errors * d.standard_error
