from gradcheck.analysis.wording import BY_VALUE, number, percent, probe_failure
from gradcheck.rules.graph import _place
from gradcheck.types.checks import Derivatives
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, required, rule

# What a mismatch that is meant looks like, and what it says about the gradient.
INTENDED = {
    "straight-through": "a straight-through estimator: the forward pass is a staircase, the backward pass lets the gradient through",
    "gradient-reversal": "gradient reversal: the forward pass changes nothing, the backward pass flips the gradient's sign",
    "gradient-scaling": "a changed gradient on purpose: the forward pass changes nothing, the backward pass does",
    "stop-gradient": "a stopped gradient: values are detached, so that the loss depends on weights in ways that autograd is not told of",
}
DIFFERENCE = "float64, 12 correct networks: at most 4.3e-8; a backward that is off by 1 %: 2e-3 or more (calibration E6)"


@rule(
    "GRAPH005",
    up_to="error",
    needs=("derivatives", "probe"),
    limits={
        "disagreement": Limit(1e-3, "of the larger derivative", DIFFERENCE),
        "advice": Limit(1e-5, "of the larger derivative", DIFFERENCE),
    },
    explains=("GRAD001", "GRAD002", "GRAD004", "LOSS005", "OPT001", "OPT007", "OPT002", "GRAPH008"),
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
    d = required(m.derivatives, not_measured("the gradient was not compared with finite differences"))
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
    return found("info", message, layers=[d.layer], location=d.site, evidence=_evidence(d, limits["advice"]), remedies=cure)


def _wrong_function(d: Derivatives, wrong: float, limits: Limits) -> Finding:
    packaged = d.site is not None and d.site.detail is not None
    severity: Severity = "info" if packaged else "error"
    limit = limits["disagreement"]
    message = (
        f"backward of {d.function}{_place(d.layer)} is not the derivative of its forward: off by {percent(min(wrong, 1.0))} "
        f"(limit {percent(limit)}), so all weights before it are trained for something other than the loss"
    )
    evidence = [_evidence(d, limits["advice"])]
    if d.function_error is not None:
        evidence.append(
            Evidence(f"disagreement of {d.function} by itself", d.function_error, limit, ">", "of the larger derivative", d.layer)
        )
    said = f"; torch.autograd.gradcheck says: {d.gradcheck}" if d.gradcheck else ""
    text = f"correct {d.function}.backward, or leave it to autograd; check it with torch.autograd.gradcheck in float64{said}".rstrip(".")
    cure = Remedy("fix-backward", text, "unsafe")
    return found(severity, message, layers=[d.layer], location=d.site, evidence=evidence, remedies=cure, confirmed=BY_VALUE)


def _hook(m: Measurement, d: Derivatives, limits: Limits) -> Finding:
    factor = d.hook_factor if d.hook_factor is not None else 1.0
    failure = probe_failure(m)
    severity: Severity = "info" if factor > 1e-6 else ("error" if failure else "warning")
    means = "flips the gradient's sign" if factor < -1e-6 else "removes the gradient" if factor <= 1e-6 else "changes the gradient"
    kind = "a tensor hook" if d.hook == "tensor" else "a module's backward hook"
    message = (
        f"{kind}{_place(d.layer)} {means}: it passes on {number(factor)} times what it gets, and autograd is "
        f"{percent(min(d.error, 1.0))} off the derivative of the loss (limit {percent(limits['disagreement'])})"
    )
    cure = Remedy(
        "remove-hook", f"remove the hook{_place(d.layer)}; clip gradients between backward and the optimizer's step instead", "unsafe"
    )
    evidence = _evidence(d, limits["disagreement"])
    return found(severity, message, layers=[d.layer], location=d.site, evidence=evidence, remedies=cure, confirmed=failure)


def _unexplained(d: Derivatives, limits: Limits) -> Finding:
    message = (
        f"autograd's gradient is {percent(min(d.error, 1.0))} off the derivative of the loss (limit {percent(limits['disagreement'])}), "
        "and no custom Function, hook or detached value explains it: an extension in C++, perhaps"
    )
    cure = Remedy("check-extensions", "run torch.autograd.gradcheck on operations that do not come from torch", "advice")
    return found("info", message, evidence=_evidence(d, limits["disagreement"]), remedies=cure)
