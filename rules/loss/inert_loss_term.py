from collections.abc import Sequence

from gradcheck.analysis.activations import PIECEWISE_LINEAR
from gradcheck.analysis.wording import number, percent
from gradcheck.rules.graph.disconnected_parameters import OPERATIONS
from gradcheck.types.checks import IdleTerm
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import SilentTerm
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule

ORDERS = {1: "a derivative", 2: "a second derivative", 3: "a third derivative"}


@rule("LOSS009", up_to="warning", needs=("terms",))
def inert_loss_term(m: Measurement, limits: Limits) -> Verdict:
    """A part of the loss sends no gradient to anything that is trained.

    ## What it finds
    Terms of a sum that carry no gradient although they were computed from the model (detached, under `no_grad`, made a number by
    `item()`, a share of errors), losses of what no trained weight makes (the divergence of a teacher from itself, the decay of frozen
    weights), terms whose gradient is exactly zero, as that of a ratio of equal probabilities, and derivatives that are zero everywhere,
    such as the second derivative of a net of ReLUs.

    ## Why it matters
    The term is part of the loss that is logged but teaches nothing: the penalty does not act, the equation is not
    solved, the student learns nothing from its teacher.

    ## How it is measured
    The loss is taken apart, call by call, into what it is a sum of, up to factors. A term counts when it is not zero and no trained
    parameter gets a gradient from it, both before training and after the probe; so does a difference of equals. Terms under a bound
    that is met (`clamp`, `relu`, `maximum`) do not count, nor does what shifts another term by itself (straight-through values, the
    largest logit that is subtracted and added again). Derivatives are those that `torch.autograd.grad` takes with `create_graph`. A
    term that the loop computes from no trained weight counts when it is a loss function of torch, or made of frozen weights alone,
    that all of its recorded steps add to the loss. A number counts when it is read from what carries gradient, no other part of the
    loss takes it, and what is added to the loss follows it along one straight line in every recorded step.

    ## Limits and their sources
    None: a gradient of exactly zero (a matter of definition).

    ## When to ignore it
    When the term is there only to be logged. Better: log it separately.

    ## Example
    ```python
    loss = F.cross_entropy(model(x), y) + 0.1 * penalty.detach()
    ```

    ## Use instead
    ```python
    loss = F.cross_entropy(model(x), y) + 0.1 * penalty
    ```

    ## References
    Raissi et al. 2019, Physics-informed neural networks (activations with derivatives of all orders); Hinton et al. 2015,
    Distilling the Knowledge in a Neural Network.
    """
    seen = [t for t in m.idle_terms if t.kind not in ("equals", "runaway", "away", "ratio")]
    told = [t for t in (m.loop.silent or () if m.loop is not None else ()) if t.kind in ("no-weights", "cut")]
    if not m.loss_given and not seen:
        return not_applicable("the loss is gradcheck's own")
    findings = [_derivative(m, t) if t.kind == "derivative" else _term(t) for t in seen]
    sites = {t.site for t in seen}
    findings += [_cut(t) if t.kind == "cut" else _of_nothing(t.operation, t.site, t.passes) for t in told if t.site not in sites]
    return findings


def _term(t: IdleTerm) -> Finding:
    share = abs(t.value) / t.loss if t.loss else 1.0
    operation = OPERATIONS.get(t.operation, t.operation)
    if t.kind == "cut":
        why, cure = f"it was cut off by {operation}", Remedy("remove-detach", f"remove {operation}, or log the term by itself", "unsafe")
    elif t.kind == "no-weights":
        why = f"no trained weight has a part in what {operation} is given"
        cure = Remedy("check-arguments", f"give {operation} the output of the model that is trained", "unsafe")
    elif not t.value:
        why = "both sides of a difference in it are equal, and their gradients cancel"
        cure = Remedy("check-arguments", "take the one side from where it was kept, without gradient, or from another model", "unsafe")
    else:
        why = "its gradient is exactly 0 for every trained weight"
        cure = Remedy("check-term", "look for what has a zero derivative in it, or log the term by itself", "unsafe")
    message = (
        f"a term of the loss trains nothing: {why}, before training and after the probe; its value is {number(t.value)}"
        f"{f', {percent(share)} of the loss' if share <= 1 else ''} (limit on its gradient: over 0)"
    )
    evidence = Evidence("value of the term", t.value, unit="without gradient")
    return found("warning", message, location=t.site, evidence=evidence, remedies=cure)


def _cut(t: SilentTerm) -> Finding:
    if t.operation == "item":
        why, cure = "item() or float() makes a plain number of it", "add the tensor itself, without item()"
    else:
        why, cure = f"the derivatives that {t.operation} gives have no gradient themselves", "pass create_graph=True"
    message = f"a term of the loss trains nothing: {why}, in {t.passes} of {t.passes} recorded passes (limit: in all)"
    remedy = Remedy("remove-detach", f"{cure}, or log the term by itself", "unsafe")
    evidence = Evidence("passes without gradient", t.passes, t.passes, ">=")
    return found("warning", message, location=t.site, evidence=evidence, remedies=remedy)


def _of_nothing(operation: str, site: object, passes: int) -> Finding:
    message = (
        f"{operation} adds a term to the loss that trains nothing: no trained weight has a part in what it is given, in "
        f"{passes} of {passes} recorded passes (limit: in all)"
    )
    cure = Remedy("check-arguments", f"give {operation} the output of the model that is trained", "unsafe")
    return found("warning", message, location=site, evidence=Evidence("passes without gradient", passes, passes, ">="), remedies=cure)  # type: ignore[arg-type]


def _derivative(m: Measurement, t: IdleTerm) -> Finding:
    linear = sorted({x.function for x in m.layers if x.kind == "activation" and x.function in PIECEWISE_LINEAR})
    others = [x for x in m.layers if x.kind == "activation" and x.function not in PIECEWISE_LINEAR]
    what = ORDERS.get(t.order, "a higher derivative")
    why = f": the net is piecewise linear, by {_listed(linear)}" if linear and not others and t.order > 1 else ""
    message = (
        f"{what} that the loss is made of is 0 everywhere, before training and after the probe (limit: 0){why}; what the loss makes "
        "of it trains nothing"
    )
    cure = Remedy("smooth-activation", "use activations with as many derivatives: tanh, SiLU, GELU or sine", "unsafe")
    evidence = Evidence("largest entry of the derivative", 0.0, 0.0, "<=")
    return found("warning", message, location=t.site, evidence=evidence, remedies=cure)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
