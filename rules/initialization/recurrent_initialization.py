from gradcheck.analysis.wording import number
from gradcheck.rules.gradient.gradient_through_time import decay, hinders
from gradcheck.types.checks import Recurrence
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


def radius_finding(m: Measurement, r: Recurrence, limits: Limits) -> Finding | None:
    """A spectral radius that explains the measured decay or growth, in a model that fails."""
    radius, size = r.spectral_radius, decay(r)
    if radius is None or not hinders(m) or not m.data.given:
        return None
    low = radius < limits["low_radius"] and size > limits["decades"] and not r.every_step
    high = radius > limits["high_radius"] and size < -limits["growth"]
    if not low and not high:
        return None
    limit = limits["low_radius" if low else "high_radius"]
    message = (
        f"recurrent weights of {r.layer or 'the model'} ({r.type}) have spectral radius {number(radius)} "
        f"(limit {number(limit)}): over {len(r.gradients)} steps the gradient {'loses' if low else 'gains'} {number(abs(size))} decades"
    )
    evidence = (
        Evidence("spectral radius of the recurrent weights", radius, limit, "<" if low else ">", "", r.layer),
        Evidence("change of the gradient over time", abs(size), limits["decades" if low else "growth"], ">", "decades", r.layer),
    )
    cure = Remedy("orthogonal-recurrent", f"initialise them with orthogonal_: spectral radius 1 instead of {number(radius)}", "safe")
    return found("warning", message, layers=(r.layer,), location=r.site, evidence=evidence, remedies=cure)


def forget_finding(r: Recurrence, limits: Limits) -> Finding | None:
    """A forget gate that starts closed (a warning), or half open over many steps (advice)."""
    bias = r.forget_bias
    if bias is None:
        return None
    shut = bias < limits["shut_forget_bias"]
    if not shut and (abs(bias) > limits["zero_forget_bias"] or r.steps <= limits["steps"]):
        return None
    severity: Severity = "warning" if shut else "info"
    what, limit = ("shut", limits["shut_forget_bias"]) if shut else ("half open", limits["zero_forget_bias"])
    message = (
        f"forget gates of {r.layer or 'the model'} ({r.type}) start {what}: their bias is {number(bias)} on average "
        f"(limit {number(limit)}), and a state fades within a few of the {r.steps} steps"
    )
    evidence = Evidence("mean bias of the forget gate", bias, limit, "<", "", r.layer)
    cure = Remedy("forget-bias", f"set the forget gate's bias to 1 instead of {number(bias)}: bias_ih 1, bias_hh 0", "safe")
    return found(severity, message, layers=(r.layer,), location=r.site, evidence=evidence, remedies=cure)


@rule(
    "INIT004",
    up_to="warning",
    needs=("recurrence", "probe", "parameters", "regularization"),
    limits={
        "low_radius": Limit(0.7, "", "heuristic: torch's default has 0.59, orthogonal weights have 1"),
        "high_radius": Limit(1.3, "", "heuristic: with tanh and clipping 1.18 still trains"),
        "decades": Limit(2.0, "decades", "gradient-through-time's limit: beyond it half of the runs do not recall the first token"),
        "growth": Limit(2.0, "decades", "gradient-through-time's limit for growth"),
        "shut_forget_bias": Limit(-0.5, "", "a bias of -2 loses 0.6 to 0.7 decades per step, 0 loses 0.2, 1 loses 0.08"),
        "zero_forget_bias": Limit(0.3, "", "torch's default is uniform within 1 / sqrt(units), twice; 1 is the usual choice"),
        "steps": Limit(20, "steps", "at 0.2 decades per step a hundredth is left after 10 steps, a ten-thousandth after 20"),
    },
)
def recurrent_initialization(m: Measurement, limits: Limits) -> Verdict:
    """Recurrent weights, or forget gates, start so that the state fades or blows up within a few steps.

    ## What it finds
    Simple recurrent layers whose recurrent weights are too small or too large, where the gradient through time
    shows it; and LSTM layers whose forget gates start shut, or half open over many steps.

    ## Why it matters
    The state, and the gradient with it, is multiplied at each step by something like the spectral radius of the recurrent
    weights, or by the forget gate: sigmoid(-2) = 0.12 leaves less than 1e-9 of it after 10 steps.

    ## How it is measured
    The largest absolute eigenvalue of the recurrent weights before training, where a layer has one square
    matrix; the mean over units of the forget gate's bias, torch's two biases added, of the layer or direction
    where it is lowest. The decay is that of `gradient-through-time`.

    ## Limits and their sources
    A spectral radius below `low-radius` 0.7 with a decay beyond `decades` 2, or above `high-radius` 1.3 with
    growth beyond `growth` 2 decades: a warning, only when the probe training fails, since torch's default of 0.59
    trains well where the last steps suffice. Radii are heuristics. A mean forget bias below `shut-forget-bias`
    -0.5: a warning. Within `zero-forget-bias` 0.3 of zero, with more than `steps` 20 time steps: advice.

    ## When to ignore it
    When only the last few steps matter.

    ## Example
    ```python
    lstm = nn.LSTM(8, 64)
    nn.init.constant_(lstm.bias_ih_l0, -1.0)  # shuts all gates, the forget gate among them
    ```

    ## Use instead
    ```python
    lstm = nn.LSTM(8, 64)
    with torch.no_grad():
        lstm.bias_ih_l0[64:128].fill_(1.0)  # the forget gate
        lstm.bias_hh_l0[64:128].zero_()
    ```

    ## References
    Gers et al. 2000, Learning to Forget; Jozefowicz et al. 2015; Le et al. 2015 (IRNN); Tallec and Ollivier 2018.
    """
    judged = [r for r in m.recurrences if r.spectral_radius is not None or r.forget_bias is not None]
    if not judged:
        return not_applicable("no simple recurrent layer and no LSTM with at least 8 time steps")
    if m.pretrained:
        return not_applicable("the model was trained before: its weights were learned")
    made = (radius_finding(m, r, limits) or forget_finding(r, limits) for r in judged)
    return [f for f in made if f is not None]
