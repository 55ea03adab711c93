from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.depth import gradient_trend, over_nets, trend_evidence
from gradcheck.analysis.layer_groups import body, depths, names
from gradcheck.analysis.wording import number
from gradcheck.rules import cures
from gradcheck.rules.normalization import main_site
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "NORM001",
    up_to="warning",
    needs=("signals", "graph", "probe"),
    limits={
        "layers": Limit(20, "layers", "86 failing plain networks of 8 to 30 layers: BatchNorm made 78 to 87 % of them train"),
        "slope": Limit(0.075, "decades per layer", "limits of vanishing-gradient: 507 random networks, 58 healthy architectures"),
        "total": Limit(2.0, "decades", "random networks beyond 2 decades: 43 of 43 fail with SGD at 0.01, 63 % with Adam at 0.001"),
    },
)
def missing_normalization(m: Measurement, limits: Limits) -> Verdict:
    """A deep plain network without normalization whose signal does not survive the depth.

    ## What it finds
    Networks of 20 or more layers with neither normalization nor residual connections, whose gradient shrinks or
    grows with depth and whose probe training does not learn.

    ## Why it matters
    Without normalization each layer multiplies the scale of signal and gradient. Over 20 layers a factor of 0.8
    is a factor of 0.01.

    ## How it is measured
    Layers before the head that are neither normalised nor added to a bypass, and the slope of log10 ||dL/dh||
    over them before the first step, as for `vanishing-gradient`. Nothing is said of a network that learns in the
    probe: a good initialisation replaces normalization.

    ## Limits and their sources
    `layers` 20, `slope` 0.075 decades per layer and `total` 2 decades. From 507 random networks, and 86 failing
    plain ones on which the cures were tried.

    ## When to ignore it
    When you chose another remedy: an initialisation that fits the activation, or residual connections.

    ## Example
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(24)]
    ```

    ## Use instead
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(24)]
    ```

    ## References
    Ioffe and Szegedy 2015, Batch Normalization; Schoenholz et al. 2016, Deep Information Propagation.
    """
    return over_nets(m, lambda net: _missing(net, limits))


def _missing(m: Measurement, limits: Limits) -> Verdict:
    layers, least = body(m), limits["layers"]
    if len(set(depths(layers))) < least:
        return not_applicable(f"fewer than {number(least)} linear, conv or recurrent layers before the head")
    if m.norms or any(m.of_kind("norm")) or any(x.normalized or x.residual for x in layers):
        return not_applicable("the model has normalization or residual connections")
    trend = gradient_trend(m)
    if not trend.beyond(limits["slope"], limits["total"]) or training_outcome(m) not in ("stalls", "diverges"):
        return []
    way = "shrinks" if trend.slope > 0 else "grows"
    message = (
        f"{len(layers)} layers in a row have neither normalization nor a bypass, and the gradient {way} towards the input by "
        f"{number(abs(trend.total))} decades (limit {number(limits['total'])}): the probe training does not learn"
    )
    remedies = (*cures.normalise(m, layers), *cures.reinitialise(m, layers), *cures.bypass(layers))
    evidence = trend_evidence(trend, limits, layers[0].name)
    return [found("warning", message, layers=names(layers), location=main_site(layers), evidence=evidence, remedies=remedies)]
