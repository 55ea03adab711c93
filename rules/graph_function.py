"""GRAPH: the model as a function. Its derivative, and what its output for a sample depends on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradcheck.analysis.wording import BY_VALUE, learns_clearly, number, percent, probe_failure
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule

if TYPE_CHECKING:
    from gradcheck.types.checks import Dependence, Derivatives
    from gradcheck.types.finding import Severity
    from gradcheck.types.measurement import Measurement

# What a mismatch that is meant looks like, and what it says about the gradient.
INTENDED = {
    "straight-through": "a straight-through estimator: the forward pass is a staircase, the backward pass lets the gradient through",
    "gradient-reversal": "gradient reversal: the forward pass changes nothing, the backward pass turns the gradient round",
    "gradient-scaling": "a changed gradient on purpose: the forward pass changes nothing, the backward pass does",
    "stop-gradient": "a stopped gradient: values are detached, so that the loss depends on weights in ways that autograd is not told of",
}
DIFFERENCE = "float64, 12 correct networks: at most 4.3e-8; a backward that is off by 1 %: 2e-3 or more (calibration E6)"


@rule(
    "GRAPH005",
    "wrong-gradient",
    up_to="error",
    needs=("derivatives", "probe"),
    limits={
        "disagreement": Limit(1e-3, "of the larger derivative", DIFFERENCE),
        "advice": Limit(1e-5, "of the larger derivative", DIFFERENCE),
    },
    explains=("GRAD001", "GRAD002", "GRAD004", "LOSS005", "OPT001", "OPT002", "GRAPH008"),
)
def wrong_gradient(m: Measurement, limits: Limits) -> Verdict:
    """Autograd's gradient is not the derivative of the loss.

    ## What it finds
    Custom autograd Functions (also operators registered with torch.library) whose backward is not the derivative of
    their forward, with the module and line that call them; and hooks that change the gradient on its way. What is
    known to be meant is reported as advice: straight-through estimators and surrogate gradients, gradient reversal,
    gradients scaled behind an identity, detached values.

    ## Why it matters
    The optimizer goes where the gradient points. With a wrong one, all layers before the fault train towards
    something other than the loss, while those after it still learn: the loss falls, only not as far.

    ## How it is measured
    A copy of the model in float64, four samples, the same random numbers in every pass. Weights are moved by 5 % at
    random, so that no unit sits on a kink, then along one random direction: the central difference of the loss must
    be the gradient's share in that direction. When it is not, three directions and steps from 1e-8 to 1e-3 are
    compared, and only differences that agree with each other count: noise and kinks do not. Then each call of a
    custom Function is tested in the same way by itself, along the way that its arguments move with the weights, and
    `torch.autograd.gradcheck` is run on the one at fault. A forward that jumps, or that returns its argument,
    tells what is meant.

    ## Limits and their sources
    `disagreement` 0.001 and `advice` 0.00001: |difference - autograd| over the larger of both, the median over
    directions. Twelve correct networks reach 4.3e-8 at most in float64; a backward that is off by 1 % gives 2e-3 or
    more, a wrong sign or a forgotten factor 0.1 to 1. An error: a custom Function of yours disagrees by itself by
    more than `disagreement`, and the loss by more than `advice`. A hook that takes or turns all of the gradient
    is a warning, and an error when the probe training fails too.

    ## When to ignore it
    When the backward is an approximation that you chose, such as a truncated gradient of a fixed point.

    ## Example
    ```python
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.exp()

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * x
    ```

    ## Use instead
    ```python
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, gradient):
            (y,) = ctx.saved_tensors
            return gradient * y
    ```

    ## References
    PyTorch documentation, "Extending torch.autograd" and "Gradcheck mechanics"; Bengio et al. 2013 (straight-through
    estimators); Ganin and Lempitsky 2015 (gradient reversal).
    """
    d = m.derivatives
    if d is None:
        return not_measured("the gradient was not compared with finite differences")
    if not d.deterministic:
        return not_measured("two forward passes with the same random numbers gave different losses")
    if d.error <= limits["advice"]:
        return []
    if d.intended is not None:
        return [_meant(d, limits)]
    if d.function is not None:
        wrong = max(d.error, d.function_error or 0.0)
        return [_wrong_function(d, wrong, limits)] if wrong > limits["disagreement"] else []
    if d.error <= limits["disagreement"]:
        return []
    return [_hook(m, d, limits) if d.hook is not None else _unexplained(d, limits)]


def _place(layer: str) -> str:
    return f" in {layer}" if layer else ""


def _evidence(d: Derivatives, limit: float) -> Evidence:
    return Evidence("disagreement of autograd with differences of the loss", d.error, limit, ">", "of the larger derivative", d.layer)


def _meant(d: Derivatives, limits: Limits) -> Finding:
    what = INTENDED[d.intended or "stop-gradient"]
    by = f"{d.function}" if d.function else "detached or rounded values"
    message = (
        f"autograd's gradient is {percent(min(d.error, 1.0))} off the derivative of the loss because of {by}{_place(d.layer)}, "
        f"which looks like {what}"
    )
    cure = Remedy(
        "keep-or-remove", f"if {by}{_place(d.layer)} is not meant to hide part of the derivative, let autograd see through it", "advice"
    )
    return found("info", message, layers=[d.layer], location=d.site, evidence=[_evidence(d, limits["advice"])], remedies=[cure])


def _wrong_function(d: Derivatives, wrong: float, limits: Limits) -> Finding:
    packaged = d.site is not None and d.site.detail is not None
    severity: Severity = "info" if packaged else "error"
    limit = limits["disagreement"]
    message = (
        f"backward of {d.function}{_place(d.layer)} is not the derivative of its forward: off by {percent(min(wrong, 1.0))} "
        f"(limit {percent(limit)}), so that all weights before it train towards something other than the loss"
    )
    evidence = [_evidence(d, limits["advice"])]
    if d.function_error is not None:
        evidence.append(
            Evidence(f"disagreement of {d.function} by itself", d.function_error, limit, ">", "of the larger derivative", d.layer)
        )
    said = f"; torch.autograd.gradcheck says: {d.gradcheck}" if d.gradcheck else ""
    text = f"correct {d.function}.backward, or leave it to autograd; check it with torch.autograd.gradcheck in float64{said}".rstrip(".")
    confirmed = BY_VALUE if severity == "error" else ""
    cure = Remedy("fix-backward", text, "unsafe")
    return found(severity, message, layers=[d.layer], location=d.site, evidence=evidence, remedies=[cure], confirmed=confirmed)


def _hook(m: Measurement, d: Derivatives, limits: Limits) -> Finding:
    factor = d.hook_factor if d.hook_factor is not None else 1.0
    failure = probe_failure(m)
    severity: Severity = "info" if factor > 1e-6 else ("error" if failure else "warning")
    means = "turns the gradient round" if factor < -1e-6 else "takes the gradient away" if factor <= 1e-6 else "changes the gradient"
    kind = "a tensor hook" if d.hook == "tensor" else "a module's backward hook"
    message = (
        f"{kind}{_place(d.layer)} {means}: it passes on {number(factor)} times what it gets, and autograd is "
        f"{percent(min(d.error, 1.0))} off the derivative of the loss (limit {percent(limits['disagreement'])})"
    )
    cure = Remedy(
        "remove-hook", f"remove the hook{_place(d.layer)}; clip gradients between backward and the optimizer's step instead", "unsafe"
    )
    confirmed = failure if severity == "error" else ""
    evidence = [_evidence(d, limits["disagreement"])]
    return found(severity, message, layers=[d.layer], location=d.site, evidence=evidence, remedies=[cure], confirmed=confirmed)


def _unexplained(d: Derivatives, limits: Limits) -> Finding:
    message = (
        f"autograd's gradient is {percent(min(d.error, 1.0))} off the derivative of the loss (limit {percent(limits['disagreement'])}), "
        "and no custom Function, hook or detached value explains it: an extension in C++, perhaps"
    )
    cure = Remedy("check-extensions", "run torch.autograd.gradcheck on operations that do not come from torch", "advice")
    return found("info", message, evidence=[_evidence(d, limits["disagreement"])], remedies=[cure])


@rule(
    "GRAPH007",
    "samples-mixed",
    up_to="error",
    needs=("dependence",),
    limits={"share": Limit(1e-3, "of the own change", "heuristic: independent samples give 0, or float32's rounding of 1e-6")},
    explains=("GRAPH008", "LOSS005", "OPT001", "OPT002", "NORM003"),
)
def samples_mixed(m: Measurement, limits: Limits) -> Verdict:
    """The output for one sample depends on the other samples of its batch.

    ## What it finds
    A recurrent or attention layer that takes the batch axis for time (`batch_first` forgotten), `view` or `reshape`
    over axes in the wrong order, a softmax or a running sum over the batch, an index that picks one sample for all.

    ## Why it matters
    Such a model learns from which samples happen to share a batch. Its training loss may fall; alone, or
    in another batch, a sample gets another output.

    ## How it is measured
    On the trained copy in evaluation mode, so that normalization uses its running statistics. Some samples of a small
    batch are replaced by others, and the outputs of those that stayed are compared. When they changed, both passes are
    compared operation by operation: the first result in which samples have met is blamed. Statistics over the
    batch (a normalization written by hand, minibatch discrimination), relations of all samples to each other, and choices
    by rank (sorting, routing) are advice only, as is everything when it is not certain which axis the
    samples are on: with random data, without a target of as many rows, or when the second axis could be theirs as well
    and the batches were not stacked by a DataLoader.

    ## Limits and their sources
    `share` 0.001: change of the output of samples that stayed, over the change of those that were replaced (heuristic:
    independent samples give exactly 0, or float32's rounding of about 1e-6; mixing gives 0.01 to 1).

    ## When to ignore it
    When the model is meant to compare the samples of a batch, or when the samples of a batch are the nodes of one graph.

    ## Example
    ```python
    self.rnn = nn.LSTM(8, 32)
    hidden, _ = self.rnn(x)  # x is [batch, time, features]
    ```

    ## Use instead
    ```python
    self.rnn = nn.LSTM(8, 32, batch_first=True)
    hidden, _ = self.rnn(x)
    ```

    ## References
    Karpathy 2019, A Recipe for Training Neural Networks: use backprop to chart dependencies.
    """
    d = m.dependence
    if d is None or d.mixed is None:
        return not_measured("samples could not be told apart in the model's input and output")
    if d.mixed <= limits["share"]:
        return []
    certain = d.certain and m.data.given
    return [_mixing(d, "error" if certain and d.meant is None else "info", certain, limits["share"])]


_MEANT = {
    "statistics": "statistics over the batch, as a normalization written by hand has them",
    "relation": "relations of all samples to each other",
    "routing": "a choice by rank among the samples",
}
_SEQUENCE = frozenset(
    ("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "_native_multi_head_attention", "scaled_dot_product_attention")
)


def _mixing(d: Dependence, severity: Severity, certain: bool, limit: float) -> Finding:
    operation = (d.operation or "").strip("_")
    operation = {"getitem": "an index"}.get(operation, operation)
    where = f"{operation or 'something'}{_place(d.layer)}" if operation or d.layer else "the model"
    sure = "" if certain else "if the samples are on the first axis, "
    what = f": {_MEANT[d.meant]}" if d.meant else " and makes the model depend on what else is in a batch" if severity == "error" else ""
    message = (
        f"{sure}{where} mixes the samples of a batch: when some are replaced, the output of the others changes by "
        f"{percent(d.mixed or 0.0)} as much (limit {percent(limit)}){what}"
    )
    evidence = [Evidence("change of the other samples' output", d.mixed or 0.0, limit, ">", "of the own change", d.layer)]
    confirmed = BY_VALUE if severity == "error" else ""
    return found(
        severity, message, layers=[d.layer], location=d.site, evidence=evidence, remedies=[_unmix(d, operation)], confirmed=confirmed
    )


def _unmix(d: Dependence, operation: str) -> Remedy:
    name = d.operation or ""
    if name in _SEQUENCE:
        return Remedy("batch-first", f"create {d.layer or 'the layer'} with batch_first=True, or give it [time, batch, features]", "unsafe")
    if "softmax" in name or name == "normalize":
        return Remedy("other-axis", f"let {operation}{_place(d.layer)} go over the features or classes (dim=-1), not over axis 0", "unsafe")
    if name.strip("_") in ("view", "reshape", "flatten", "unflatten"):
        text = f"give {operation}{_place(d.layer)} its axes in their order: permute back before it, and keep the batch axis first"
        return Remedy("keep-batch-axis", text, "unsafe")
    return Remedy(
        "keep-batch-axis", f"leave the batch axis alone in {operation or 'the model'}{_place(d.layer)}: work on the other axes", "unsafe"
    )


@rule(
    "GRAPH008",
    "input-ignored",
    up_to="warning",
    needs=("dependence", "probe"),
    limits={
        "effect": Limit(1e-6, "of the output", "float32's rounding, ten times over"),
        "effect_learned": Limit(1e-4, "of the output", "heuristic: a ten-thousandth of the output varies with the input"),
        "standard_errors": Limit(2.0, "standard errors", "usual two-sided test at 5 %"),
    },
    explains=("LOSS005", "OPT001", "OPT002"),
)
def input_ignored(m: Measurement, limits: Limits) -> Verdict:
    """The output hardly depends on the input.

    ## What it finds
    Models whose output stays the same when samples are replaced by others: the input is overwritten, multiplied by
    zero, cut off, or read where it holds nothing (padding).

    ## Why it matters
    Such a model can learn the average of its targets and no more, and its loss still falls at first.

    ## How it is measured
    After the probe training, in evaluation mode: samples of a batch are replaced by others, and the change of their output
    is taken relative to the output. When that is small, so in training mode as well, the loss is also measured with the
    inputs of each batch shuffled against its targets, in eight orders.

    ## Limits and their sources
    A warning when replacing samples changes the output by less than `effect` 0.000001 of its size (float32's rounding, ten
    times over). Also when the probe learned, the change is below `effect-learned` 0.01 % (heuristic), and
    the loss of shuffled inputs is no more than `standard-errors` 2 standard deviations above the true one.

    ## When to ignore it
    When the model is meant to be unconditional, as a learned constant or a density without inputs is.

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
    evidence = [Evidence("change of the output when the input changes", d.input_effect, limit, "<", "of the output")]
    cure = Remedy("use-input", "follow the input through the forward method to where its values are lost, and use them", "unsafe")
    return [found("warning", message, evidence=evidence, remedies=[cure])]


def _as_good_shuffled(d: Dependence, errors: float) -> bool:
    if d.trained_loss is None or d.shuffled_loss is None or d.standard_error is None:
        return False
    if not (math.isfinite(d.trained_loss) and math.isfinite(d.shuffled_loss)):
        return False
    return d.shuffled_loss - d.trained_loss <= errors * d.standard_error


RULES = (wrong_gradient, samples_mixed, input_ignored)
