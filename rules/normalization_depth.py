"""Normalization in deep networks: where it lacks, and where it needs bypasses or a warm-up beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.depth import Trend, gradient_trend
from gradcheck.analysis.layer_groups import body, depths, names
from gradcheck.analysis.parallel_nets import over_nets
from gradcheck.analysis.wording import falls_short, learns_clearly, number, optimizer_in_words
from gradcheck.rules import cures
from gradcheck.rules.normalization import batch_norms, main_site, norm_names
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from gradcheck.types.finding import Severity
    from gradcheck.types.measurement import Measurement


def trend_evidence(trend: Trend, limits: Limits, layer: str) -> tuple[Evidence, ...]:
    return (
        Evidence("slope of the gradient over depth", abs(trend.slope), limits["slope"], ">=", "decades per layer", layer),
        Evidence("change of the gradient over depth", abs(trend.total), limits["total"], ">=", "decades", layer),
    )


@rule(
    "NORM001",
    "missing-normalization",
    up_to="warning",
    needs=("signals", "graph", "probe"),
    limits={
        "layers": Limit(20, "layers", "86 failing plain networks of 8 to 30 layers: BatchNorm brought 78 to 87 % of them to train"),
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
    over them before the first step, as for `vanishing-gradient`. A network that learns in the probe is left in
    peace: a good initialisation replaces normalization.

    ## Limits and their sources
    `layers` 20, `slope` 0.075 decades per layer and `total` 2 decades. From 507 random networks, and 86 failing
    plain ones on which the cures were tried.

    ## When to ignore it
    When another cure was chosen: an initialisation that fits the activation, or residual connections.

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


@rule(
    "NORM002",
    "deep-batchnorm-without-skips",
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
    Batch normalization keeps the forward signal at size 1, and pays for it backwards: each ReLU layer multiplies
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
    When the rate is warmed up and the network trains.

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
    means = "the probe training learns all the same" if learns_clearly(m) else "no one rate fits both ends"
    message = (
        f"{len(norms)} batch normalizations in a row without a bypass: the gradient grows by {number(abs(trend.slope))} decades per layer "
        f"towards the input, {number(abs(trend.total))} in all (limit {number(limits['total'])}): {means}"
    )
    remedies = (*cures.bypass(layers), Remedy("warm-up", "warm the rate up over the first few hundred steps", "advice"))
    evidence = trend_evidence(trend, limits, layers[0].name)
    severity: Severity = "info" if mild else "warning"
    return [found(severity, message, layers=norm_names(norms), location=main_site(norms), evidence=evidence, remedies=remedies)]


@rule(
    "NORM008",
    "post-norm-without-warmup",
    up_to="warning",
    needs=("graph", "probe"),
    limits={
        "norms": Limit(11, "normalizations", "six blocks of two, less the first; 4 deep ones trained at 0.003, 10 deep ones did not"),
        "rate": Limit(1e-3, "rate of an adaptive optimizer", "10 blocks at 0.003: loss 1.26 without warm-up, 0.36 with 60 steps of it"),
    },
)
def post_norm_without_warmup(m: Measurement, limits: Limits) -> Verdict:
    """A deep post-norm transformer at full rate from the first step.

    ## What it finds
    Six or more blocks that normalise the sum of bypass and branch, norm(x + f(x)), trained by an adaptive
    optimizer at 0.001 or more that is not warming up.

    ## Why it matters
    In post-norm networks small changes of the weights are amplified from block to block. The first steps of
    Adam, each of full size in every weight, push the model onto a plateau that it does not leave.

    ## How it is measured
    Normalizations that take the sum of a normalised bypass and a branch while nothing else takes that sum, read
    from the autograd graph. In pre-norm networks the sum goes on along the bypass.

    ## Limits and their sources
    `norms` 11 (six blocks of two; the first takes a bypass that is not normalised yet) and `rate` 0.001: a warning;
    advice only when the probe training learns clearly, or with an optimizer that gradcheck assumed. Not for RAdam,
    which warms up by itself, nor for models that were trained before.

    ## When to ignore it
    When a schedule warms the rate up and the scan did not see it.

    ## Example
    ```python
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 4), 8)  # norm_first=False is the default
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    ```

    ## Use instead
    ```python
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 4, norm_first=True), 8)
    ```

    ## References
    Xiong et al. 2020, On Layer Normalization in the Transformer Architecture; Liu et al. 2020, Understanding the
    Difficulty of Training Transformers.
    """
    norms = [n for n in m.norms if n.added]
    if len(norm_names(norms)) < limits["norms"]:
        return not_applicable(f"fewer than {number(limits['norms'])} normalizations of a sum (post-norm)")
    if m.pretrained:
        return not_applicable("the model was trained before")
    o = m.optimizer
    if not o.adaptive or o.lr < limits["rate"] or o.warming_up or o.name == "RAdam":
        return []
    if training_outcome(m) == "unknown":
        return not_measured("the probe training is too short to say whether it learns")
    mild = learns_clearly(m) or not o.given
    means = "the probe training learns all the same" if learns_clearly(m) else "the first steps may throw it onto a plateau"
    message = (
        f"{len(norm_names(norms))} normalizations take the sum of bypass and branch (post-norm; limit {number(limits['norms'])}), and "
        f"{optimizer_in_words(m)} (limit {number(limits['rate'])}) starts without warm-up: {means}"
    )
    warm = Remedy("warm-up", "raise the rate linearly from 0 over the first few hundred steps, up to a tenth of the run", "advice")
    pre = Remedy("pre-norm", "normalise the branch's input instead of the sum (norm_first=True), with one more norm at the end", "unsafe")
    evidence = (
        Evidence("post-norm normalizations", float(len(norm_names(norms))), limits["norms"], ">=", "", norms[0].layer),
        Evidence("rate", o.lr, limits["rate"], ">=", ""),
    )
    place, severity = main_site(norms), "info" if mild else "warning"
    return [found(severity, message, layers=norm_names(norms), location=place, evidence=evidence, remedies=(warm, pre))]  # type: ignore[arg-type]


RULES = (missing_normalization, deep_batchnorm_without_skips, post_norm_without_warmup)
