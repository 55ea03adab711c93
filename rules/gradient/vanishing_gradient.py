from gradcheck.analysis.activations import SIGMOID_LIKE
from gradcheck.analysis.depth import Trend, over_nets
from gradcheck.analysis.layer_groups import trained_body, usual_activation
from gradcheck.rules import cures
from gradcheck.rules.gradient import FEW_LAYERS, TREND_LIMITS, lasting_trend, trend_finding
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, not_applicable, rule


@rule(
    "GRAD001",
    up_to="error",
    needs=("signals", "graph", "probe"),
    limits=TREND_LIMITS,
    explains=("NORM001", "INIT001", "INIT002", "INIT007", "ACT004", "OPT002", "GRAPH008", "LOSS005"),
)
def vanishing_gradient(m: Measurement, limits: Limits) -> Verdict:
    """The gradient shrinks exponentially on its way from the loss to the input.

    ## What it finds
    Networks whose gradient loses a constant factor per layer, so that the layers near the input receive next to
    none.

    ## Why it matters
    The first layers keep their random weights, while the last ones train on what those make of the input. Of 507 randomly drawn
    networks, all 164 whose gradient shrank or grew by 3 decades or more failed with SGD at 0.01.

    ## How it is measured
    In training mode, before the first step and again after three: the 2-norm of dL/dh for the output h of each
    linear, conv and recurrent layer before the head, up to the last one that the optimizer trains. A line through log10
    of the norms over depth, the number of such layers on the longest way from the input, gives the slope; slope times
    depth is the total. Nets side by side, such as actor and critic, are judged one by one. Ratios of weight gradients are
    not used: forward and backward decay cancel in them. Layers whose gradient is exactly zero at the start (behind
    zero-initialised branches) are left to the later measurement. Both the slope and the total must be beyond
    their limits, both times.

    ## Limits and their sources
    `slope` 0.075 decades per layer and `total` 2.5 decades: a warning. `error-total` 4 decades (SGD and kin) or
    `error-total-adaptive` 6 decades (Adam and kin): an error; below them only if the probe training fails.
    Never an error when the probe training learns, and below 4 decades only advice when its loss falls by 10 %.
    At least `layers` 4. All from 507 random networks trained with two optimizers, 66 held-out ones, and 58
    healthy architectures.

    ## When to ignore it
    When only the last layers are meant to learn: better to freeze the first ones, which also silences this
    rule.

    ## Example
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(20)]  # torch's default: x 0.41 per layer
    ```

    ## Use instead
    ```python
    for layer in layers:
        nn.init.kaiming_normal_(layer[0].weight, nonlinearity="relu")
        nn.init.zeros_(layer[0].bias)
    ```

    ## References
    Glorot and Bengio 2010; He et al. 2015; Schoenholz et al. 2016, Deep Information Propagation.
    """
    return over_nets(m, lambda net: _vanishing(net, limits))


def _vanishing(m: Measurement, limits: Limits) -> Verdict:
    least = int(limits["layers"])
    if len(trained_body(m)) < least:
        return not_applicable(FEW_LAYERS.format(least))
    trend = lasting_trend(m, least)
    if not isinstance(trend, Trend):
        return trend
    if trend.slope <= 0 or not trend.beyond(limits["slope"], limits["total"]):
        return []
    layers = trained_body(m)
    activation = usual_activation(layers)
    swap = (cures.other_activation(activation),) if activation in SIGMOID_LIKE else ()
    remedies = (*swap, *cures.reinitialise(m, layers), *cures.rescale(m), *cures.bypass(layers), *cures.normalise(m, layers))
    return [trend_finding(m, trend, limits, "shrinks", "the layers near the input will hardly learn", remedies)]
