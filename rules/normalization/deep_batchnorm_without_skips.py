from gradcheck.analysis.depth import gradient_trend, over_nets, trend_evidence
from gradcheck.analysis.layer_groups import body
from gradcheck.analysis.wording import falls_short, learns_clearly, number
from gradcheck.rules import cures
from gradcheck.rules.normalization import batch_norms, main_site, norm_names
from gradcheck.types.finding import Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "NORM002",
    up_to="warning",
    needs=("signals", "graph", "probe"),
    limits={
        "layers": Limit(20, "batch normalizations", "theory: 0.083 decades per ReLU layer, so 2 decades need 24; vgg16_bn has 13"),
        "slope": Limit(0.06, "decades per layer", "20 ReLU layers: 0.085 measured; healthy ones with skips reach 0.062 at most"),
        "total": Limit(2.0, "decades", "random networks with BatchNorm and no skips: 4 of 4 fail at 2 to 3 decades, 10 of 10 at 3 to 4"),
    },
)
def deep_batchnorm_without_skips(m: Measurement, limits: Limits) -> Verdict:
    """Many batch normalizations in a row without residual connections: the gradient grows towards the input.

    ## What it finds
    Plain networks of 20 or more layers, each followed by a batch normalization, without residual connections,
    whose gradient grows towards the input.

    ## Why it matters
    Batch normalization keeps the forward signal at size 1 at the expense of the backward pass: each ReLU layer multiplies
    the power of the gradient by pi / (pi - 1) = 1.47. Over 30 layers the first layer's gradient is 300 times the
    last one's, and no rate fits both.

    ## How it is measured
    The slope of log10 ||dL/dh|| over the layers before the head, in training mode, before the first step; the
    number of batch normalizations that use the batch's statistics; and whether any layer's output is added to a
    bypass.

    ## Limits and their sources
    `layers` 20, `slope` 0.06 decades per layer towards the input and `total` 2 decades: a warning; advice only
    when the probe training learns clearly. The growth per layer is a theorem for wide layers and was measured
    as 0.085 decades over 20 layers; vgg16_bn, with 13, has 1.5 decades and trains.

    ## When to ignore it
    When the rate is warmed up and the network trains well.

    ## Example
    ```python
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(32)]
    ```

    ## Use instead
    ```python
    for block in self.blocks:
        x = x + block(x)
    ```

    ## References
    Yang et al. 2019, A Mean Field Theory of Batch Normalization.
    """
    return over_nets(m, lambda net: _without_skips(net, limits))


def _without_skips(m: Measurement, limits: Limits) -> Verdict:
    norms, layers = [n for n in batch_norms(m) if n.of_batch], body(m)
    if len(norms) < limits["layers"]:
        return not_applicable(f"fewer than {number(limits['layers'])} batch normalizations")
    if m.streams or any(x.residual for x in layers):
        return not_applicable("the model has residual connections")
    trend = gradient_trend(m)
    if trend.slope > -limits["slope"] or trend.total > -limits["total"]:
        return []
    mild = not falls_short(m)
    means = "the probe training learns anyway" if learns_clearly(m) else "no one rate fits both ends"
    message = (
        f"{len(norms)} batch normalizations in a row without a bypass: the gradient grows by {number(abs(trend.slope))} decades per layer "
        f"towards the input, {number(abs(trend.total))} in all (limit {number(limits['total'])}): {means}"
    )
    remedies = (*cures.bypass(layers), Remedy("warm-up", "warm the rate up over the first few hundred steps", "advice"))
    evidence = trend_evidence(trend, limits, layers[0].name)
    severity: Severity = "info" if mild else "warning"
    return [found(severity, message, layers=norm_names(norms), location=main_site(norms), evidence=evidence, remedies=remedies)]
