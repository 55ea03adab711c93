from gradcheck.analysis import convergence
from gradcheck.analysis.layer_groups import layer_site
from gradcheck.analysis.wording import BY_VALUE
from gradcheck.rules.numerics import _cure, _evidence, _harmful, _inputs, _kind, _place, _severity
from gradcheck.types.finding import Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_measured, rule

# Functions whose derivative is infinite or NaN at a point where their value is finite, and how to avoid it.
# Tried on torch 2.13: norm, std, cdist and atan2 are not among them (their derivative there is set to 0).
SINGULAR = {
    "sqrt": "sqrt(x + 1e-8), or sqrt of a clamped x",
    "rsqrt": "rsqrt(x + 1e-8)",
    "pow": "a base that is clamped away from 0",
    "hypot": "sqrt(x * x + y * y + 1e-8)",
    "log": "log of a clamped x, clamp(x, min=1e-8)",
    "xlogy": "arguments that are clamped away from 0",
    "div": "a denominator that is clamped away from 0",
    "reciprocal": "a denominator that is clamped away from 0",
    "acos": "clamp(x, -1 + 1e-6, 1 - 1e-6)",
    "asin": "clamp(x, -1 + 1e-6, 1 - 1e-6)",
    "svd": "singular values that differ, or a loss of the singular values alone",
    "eigh": "eigenvalues that differ, or a loss of the eigenvalues alone",
    "where": "a safe argument in the branch that is not taken: where() hides the value, not the gradient",
}


@rule("NUM002", up_to="error", needs=("numerics", "probe"), explains=("LOSS005", "GRAD002", "GRAD004", "OPT002"))
def singular_derivative(m: Measurement, limits: Limits) -> Verdict:
    """The forward pass is finite, but a derivative is NaN or infinite.

    ## What it finds
    Square roots, fractional powers, inverse sines and cosines, and eigenvectors at a point where their value is finite and
    their slope is not, such as `sqrt(0)` and `acos(1)`; logarithms and divisions behind a `where` that hides their value.

    ## Why it matters
    The loss looks right, and the first step turns the weights into NaN.

    ## How it is measured
    The backward pass is checked operation by operation: the first one that turns finite gradients into non-finite ones is
    named, with the range of its forward input.

    ## Limits and their sources
    None: one value is enough, if it reaches a parameter. A gradient that is not finite but reaches none (the input's own) is
    advice. With an optimizer that gradcheck assumed, later steps are a warning unless the operation has a known singularity;
    so is all of it on inputs that gradcheck made up.

    ## When to ignore it
    When the training loop skips such steps on purpose.

    ## Example
    ```python
    distance = (a - b).square().sum(dim=1).sqrt()  # a and b may be equal
    ```

    ## Use instead
    ```python
    distance = ((a - b).square().sum(dim=1) + 1e-8).sqrt()
    ```

    ## References
    PyTorch documentation: "Autograd mechanics", gradients for non-differentiable functions.
    """
    backward = sorted((e for e in m.non_finite if e.direction == "backward"), key=lambda e: e.step)
    forward = min((e.step for e in m.non_finite if e.direction != "backward"), default=None)
    if not m.non_finite and m.probe.live and _harmful(m):
        return not_measured("where the first NaN or infinity came from was not located")
    if not backward or (forward is not None and forward < backward[0].step and _harmful(m)):
        return []
    first = backward[0]
    name = first.operation
    guard = _cure(SINGULAR, name)
    if guard is None and first.step > 0 and convergence.any_learned(m):
        return []  # an overflow, caused by the learning rate
    severity, confirmed = _severity(m, first.step)
    meaning = "the next step makes the weights non-finite too"
    if not _harmful(m):
        severity, confirmed, meaning = "info", "", "it reaches no parameter here"
    elif guard and m.data.given:
        severity, confirmed = "error", BY_VALUE
    return [
        found(
            severity,
            f"the derivative of {name}{_place(first)} is {_kind(first)} at step {first.step}, "
            f"although its value is finite{_inputs(first)}: {meaning}",
            layers=(first.layer,) if first.layer else (),
            location=first.site or layer_site(m, first.layer),
            evidence=_evidence(first),
            remedies=Remedy(
                "guard-domain", f"keep clear of the singular point: {guard or 'add a small constant, or clamp the argument'}", "unsafe"
            ),
            confirmed=confirmed,
        )
    ]
