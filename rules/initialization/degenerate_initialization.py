from gradcheck.analysis.layer_groups import BODY_KINDS, bias, body, by_site, constant_at_start, in_order, names, parameters_by_name
from gradcheck.analysis.wording import BY_VALUE, also_in, number, probe_failure, quoted
from gradcheck.rules.initialization import _last_step, anything_moved, hidden_weights
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


def stays_degenerate(p: Parameter, limits: Limits) -> bool:
    """Constant at the start, and either still so after some steps, or (if not zero) its units are still equal."""
    first, last = p.at(0), p.at(-1)
    if first is None or last is None or not constant_at_start(p):
        return False
    later = [s for s in p.steps if s.step >= limits["settled_step"]]
    twins = first.norm > 0 and (last.duplicate_units or 0.0) >= limits["duplicates"]
    return all(s.constant for s in later) or twins


@rule(
    "INIT005",
    up_to="error",
    needs=("parameters", "units", "graph", "probe"),
    limits={
        "settled_step": Limit(3, "steps", "54 of 54 healthy networks have no zero gradient left after 3 steps"),
        "duplicates": Limit(0.99, "of the units", "a constant weight makes all units of a layer equal"),
        "samples": Limit(64, "samples x positions", "as dead-units: at 64 a healthy network seems to have 19 % dead units"),
        "bias": Limit(-1.0, "mean bias", "heuristic: a unit-variance pre-activation is then negative for 84 % of the inputs"),
    },
    explains=("INIT002", "INIT006", "ACT002", "ACT004", "GRAD001", "GRAD004", "GRAPH008", "LOSS005", "OPT001", "OPT007", "OPT002"),
)
def degenerate_initialization(m: Measurement, limits: Limits) -> Verdict:
    """Hidden weights that are constant, or zero, and stay so; biases that switch off a whole layer.

    ## What it finds
    Hidden weights whose entries are all equal before the first step and whose units are still equal after
    several; and biases so negative that a ReLU layer is never active.

    ## Why it matters
    Units with equal weights get equal gradients and stay equal: a layer of 512 units computes one feature.
    Zeros on both sides of a product get no gradient at all.

    ## How it is measured
    Whether all entries of a weight are equal, and which rows are, before the first step and at the later
    measured ones. Zero-initialised branches, heads and adapters are healthy: they are no longer constant after
    the first steps, and are not reported. A shut layer: no unit active before the first step, and a mean bias
    below the limit.

    ## Limits and their sources
    Constant from step 0 to the last measured one, `settled-step` 3 at least; or `duplicates` 99 % of the units
    still equal: an error. Mean `bias` below -1 before a layer without any active unit over `samples` 64: a
    warning, an error if the probe training fails.

    ## When to ignore it
    When the layer is constant on purpose: set `requires_grad_(False)`, which also silences this rule.

    ## Example
    ```python
    nn.init.constant_(self.fc1.weight, 0.1)
    ```

    ## Use instead
    ```python
    nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")
    ```

    ## References
    Goodfellow et al. 2016, Deep Learning, section 8.4.
    """
    weights = hidden_weights(m, int(limits["settled_step"]))
    shut = {before.name: (act, before, p) for act, before, p in shut_layers(m, limits)}
    findings = [_shut_finding(m, [shut[n] for n in names(group)], limits) for group in by_site(x for _, x, _ in shut.values())]
    if not weights and not findings:
        if not body(m):
            return not_applicable("no hidden linear, conv or recurrent layer")
        return not_measured(f"no hidden weight that the optimizer holds was measured at step {number(limits['settled_step'])} or later")
    if anything_moved(m):
        faulty = {x.name: (x, p) for p, x in weights if stays_degenerate(p, limits)}
        findings += [
            _degenerate_finding(group, {n: faulty[n][1] for n in names(group)}) for group in by_site(x for x, _ in faulty.values())
        ]
    return findings


def _degenerate_finding(group: list[Layer], weights: dict[str, Parameter]) -> Finding:
    first = group[0]
    p = weights[first.name]
    zero, last = p.mean == 0, _last_step(p)
    value = "zero" if zero else f"equal to {number(p.mean)}"
    effect = "they get no gradient that could change that" if zero else "its units stay copies of one another"
    message = f"all {p.count} entries of {quoted(p.name)} are {value}, and after {last} steps still equal{also_in(group)}: {effect}"
    remedy = Remedy("break-symmetry", f"initialise {quoted(p.name)} at random, e.g. with kaiming_normal_ or xavier_uniform_", "safe")
    evidence = Evidence("steps after which the units are still equal", float(last), 3.0, ">=", "steps", first.name)
    return found("error", message, layers=names(group), location=first.site, evidence=evidence, remedies=remedy, confirmed=BY_VALUE)


def shut_layers(m: Measurement, limits: Limits) -> list[tuple[Layer, Layer, Parameter]]:
    """(activation, layer before it, its bias) where no unit is active before the first step because of the bias."""
    parameters, layers, result = parameters_by_name(m), in_order(m), []
    for x in layers:
        if x.kind != "activation" or not x.units or x.dead_at_start != x.units or x.gate or x.effective_samples < limits["samples"]:
            continue
        before = next((y for y in reversed(layers) if y.order < x.order and y.kind in BODY_KINDS), None)
        p = bias(before, parameters) if before is not None else None
        if before is not None and p is not None and p.mean < limits["bias"] and not before.normalized:
            result.append((x, before, p))
    return result


def _shut_finding(m: Measurement, group: list[tuple[Layer, Layer, Parameter]], limits: Limits) -> Finding:
    failure = probe_failure(m)
    act, before, p = min(group, key=lambda item: item[2].mean)
    message = (
        f"biases of {quoted(before.name)} average {number(p.mean)} (limit {number(limits['bias'])}), and none of the {act.units} units "
        f"of {quoted(act.name)} is active for any sample{also_in([x for _, x, _ in group])}: the layer passes neither signal nor gradient"
    )
    return found(
        "error" if failure else "warning",
        message,
        layers=names(x for a, b, _ in group for x in (b, a)),
        location=before.site,
        evidence=Evidence("mean bias", p.mean, limits["bias"], "<", "", before.name),
        remedies=Remedy("he-init", f"start {quoted(p.name)} at zero", "safe"),
        confirmed=failure,
    )
