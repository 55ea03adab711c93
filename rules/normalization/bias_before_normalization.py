from gradcheck.analysis.layer_groups import bias, by_site, names, parameters_by_name
from gradcheck.analysis.wording import layers_in_words, quoted
from gradcheck.rules.normalization import over_batches
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, rule
from gradcheck.types.structure import Norm


@rule("NORM007", up_to="info", needs=("graph", "parameters"))
def bias_before_normalization(m: Measurement, limits: Limits) -> Verdict:
    """Biases whose effect batch normalization cancels.

    ## What it finds
    Linear and conv layers with a trainable bias whose output goes straight into a batch normalization that uses
    the batch's statistics.

    ## Why it matters
    The normalization subtracts the mean of each feature, and the bias with it. The bias gets no gradient but rounding
    noise, and the normalization's own bias takes its place. It costs memory and, with Adam, drifts at random.

    ## How it is measured
    From the autograd graph of the first step: what the batch normalization takes, moves of entries skipped.

    ## Limits and their sources
    None: an exact property. It is advice, since the bias does no harm worth mentioning.

    ## When to ignore it
    When checkpoints need the key, or the layer is to be fused later.

    ## Example
    ```python
    nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32))
    ```

    ## Use instead
    ```python
    nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32))
    ```

    ## References
    Ioffe and Szegedy 2015, Batch Normalization, section 3.2.
    """
    norms = over_batches(m)
    parameters = parameters_by_name(m)
    followed = {n.after: n for n in norms if n.after is not None}
    biased = [x for x in m.layers if x.name in followed and (p := bias(x, parameters)) is not None and p.trainable]
    return [_bias_finding(group, followed, m) for group in by_site(biased)]


def _bias_finding(group: list[Layer], followed: dict[str, Norm], m: Measurement) -> Finding:
    parameters = parameters_by_name(m)
    count = sum(p.count for x in group if (p := bias(x, parameters)) is not None)
    first = group[0]
    message = (
        f"the biases of {layers_in_words(names(group))} ({count} numbers) are subtracted again by the batch normalization that follows "
        f"({followed[first.name].layer}): they have no effect"
    )
    remedy = Remedy("remove-bias", f"create {quoted(first.name)} with bias=False", "unsafe")
    evidence = Evidence("biases without effect", float(count), 0.0, ">", "numbers", first.name)
    return found("info", message, layers=names(group), location=first.site, evidence=evidence, remedies=remedy)
