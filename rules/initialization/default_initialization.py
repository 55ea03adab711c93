from gradcheck.analysis.activations import GAINS
from gradcheck.analysis.depth import DEFAULT_GAIN, Trend, gradient_trend, over_nets
from gradcheck.analysis.layer_groups import body, depths, names, usual_activation
from gradcheck.analysis.wording import falls_short, number
from gradcheck.rules import cures
from gradcheck.rules.initialization import TRAINED_BEFORE
from gradcheck.rules.initialization.signal_gain import body_gains
from gradcheck.types.finding import Evidence, Finding, Severity
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "INIT007",
    up_to="error",
    needs=("signals", "parameters", "graph", "probe"),
    limits={
        "share": Limit(0.7, "of the layers", "some layers are commonly initialised by hand: the first, the last, projections"),
        "tolerance": Limit(0.03, "of the gain 0.577", "the standard deviation of 200 uniform entries errs by 3 %"),
        "layers": Limit(8, "layers", "12-layer CNNs with it fail with SGD at 0.01, 20-layer ones always"),
        "slope": Limit(0.075, "decades per layer", "limit of vanishing-gradient; the default loses 0.44 to 0.48 per ReLU layer"),
        "total_learning": Limit(4.0, "decades", "vanishing-gradient's limit for a warning on a model that learns in the probe"),
        "total": Limit(1.5, "decades", "random networks between 1.5 and 2 decades fail in 65 % with SGD at 0.01"),
    },
    explains="GRAPH008 NORM001 INIT001 LOSS005 OPT001 OPT007 OPT002".split(),
)
def default_initialization(m: Measurement, limits: Limits) -> Verdict:
    """A deep plain network left at torch's default initialisation.

    ## What it finds
    Networks of eight or more layers without normalization or residual connections whose weights are as torch's
    constructors left them, and whose gradient changes with depth.

    ## Why it matters
    torch draws weights with gain 0.58, which fits no activation in particular. ReLU needs 1.41: each layer keeps 41 %
    of the signal.

    ## How it is measured
    Gain: sqrt(fan_in) times the standard deviation of each weight before the first step. Networks with
    normalization or residual connections, and models that were trained before, are not judged. The gradient's
    trend is that of `vanishing-gradient`.

    ## Limits and their sources
    `share` 70 % of the layers within `tolerance` 3 % of the gain 0.577, at least `layers` 8, and a gradient
    trend of at least `slope` 0.075 decades per layer and `total` 1.5 decades. Advice only when the probe
    training learns clearly and the trend is below `total-learning` 4 decades. An error when the probe fails, and a paired
    training with another initialisation alone learns.

    ## When to ignore it
    When the network trains fast enough for you.

    ## Example
    ```python
    layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()) for _ in range(12)]
    ```

    ## Use instead
    ```python
    for conv, _ in layers:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)
    ```

    ## References
    He et al. 2015, Delving Deep into Rectifiers; torch.nn.Linear.reset_parameters: kaiming_uniform_(a=sqrt(5)).
    """
    if m.pretrained:
        return not_applicable(TRAINED_BEFORE)
    return over_nets(m, lambda net: _untouched(net, limits))


def _untouched(m: Measurement, limits: Limits) -> Verdict:
    layers = [x for x in body(m) if x.kind != "recurrent"]
    if len(set(depths(layers))) < limits["layers"]:
        return not_applicable(f"fewer than {number(limits['layers'])} linear or conv layers before the head")
    if any(m.of_kind("norm")) or any(x.normalized or x.residual for x in layers):
        return not_applicable("the model has normalization or residual connections")
    gains, trend = body_gains(m), gradient_trend(m)
    untouched = [x for x in layers if x.name in gains and abs(gains[x.name] / DEFAULT_GAIN - 1) <= limits["tolerance"]]
    share = len(untouched) / len(layers)
    if share < limits["share"] or not trend.beyond(limits["slope"], limits["total"]):
        return []
    mild = not falls_short(m) and abs(trend.total) < limits["total_learning"]
    severity: Severity = "info" if mild else "warning"
    return [_default_finding(m, untouched, share, trend, severity, limits)]


def _default_finding(m: Measurement, untouched: list[Layer], share: float, trend: Trend, severity: Severity, limits: Limits) -> Finding:
    activation = usual_activation(untouched)
    low, high = GAINS.get(activation or "linear", (1.0, 1.0))
    wanted = number(low) if low == high else f"{number(low)} to {number(high)}"
    message = (
        f"{len(untouched)} layers without normalization or bypass have torch's default initialisation, "
        f"gain {number(DEFAULT_GAIN)} where {activation or 'no activation'} wants {wanted}: "
        f"the gradient changes by {number(abs(trend.slope))} decades per layer, {number(abs(trend.total))} in all "
        f"(limit {number(limits['total'])}), and training starts slowly or not at all"
    )
    sites = [x.site for x in untouched]
    place = max(dict.fromkeys(sites), key=sites.count)
    evidence = (
        Evidence("layers with the default gain", share, limits["share"], ">=", "of the layers", untouched[0].name),
        Evidence("change of the gradient over depth", abs(trend.total), limits["total"], ">=", "decades", untouched[0].name),
    )
    remedies = (*cures.reinitialise(m, untouched), *cures.rescale(m), *cures.normalise(m, untouched))
    return found(severity, message, layers=names(untouched), location=place, evidence=evidence, remedies=remedies)
