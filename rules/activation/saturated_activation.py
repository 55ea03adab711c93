from gradcheck.analysis.activations import SATURATING
from gradcheck.analysis.layer_groups import by_site, hidden_activations, names
from gradcheck.analysis.wording import layers_in_words, percent, probe_failure, quoted
from gradcheck.rules import cures
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


def saturation(layer: Layer) -> float | None:
    """The smaller of its saturated shares at the start and at the last measured step."""
    first, last = layer.at(0), layer.at(-1)
    if first is None or last is None or first.saturated is None or last.saturated is None:
        return None
    return min(first.saturated, last.saturated)


@rule(
    "ACT001",
    up_to="error",
    needs=("signals", "graph", "probe"),
    limits={
        "warning_share": Limit(
            0.5, "of the entries", "heuristic after Glorot and Bengio 2010; a unit-variance input saturates 2 % of tanh"
        ),
        "error_share": Limit(
            0.9, "of the entries", "heuristic: a tenth of the gradient is left per layer; an error only if the probe fails"
        ),
    },
    explains=("GRAD001", "OPT002", "GRAPH008", "LOSS005", "CLIP001"),
)
def saturated_activation(m: Measurement, limits: Limits) -> Verdict:
    """Hidden sigmoid or tanh layers whose outputs sit at their bounds.

    ## What it finds
    Hidden layers with a bounded activation (sigmoid, tanh, hardsigmoid, softsign, hardtanh) most of whose
    entries are where the function is flat. Gates, attention and output activations are exempt.

    ## Why it matters
    Where the function is flat its derivative is near zero, and so is the gradient of everything before it.

    ## How it is measured
    The share of entries with |tanh| > 0.97, or a sigmoid outside [0.03, 0.97] (and alike for the others),
    before the first step and at the last measured one. Both must be beyond the limit. Models that were trained
    before are not judged: their saturation was learned.

    ## Limits and their sources
    `warning-share` 50 % of the entries: a warning. `error-share` 90 %: an error if the probe training fails
    too. Both are heuristics.

    ## When to ignore it
    When the layer is supposed to produce near-binary codes.

    ## Example
    ```python
    h = torch.tanh(self.fc(pixels))  # pixels in 0..255
    ```

    ## Use instead
    ```python
    h = torch.tanh(self.fc(pixels / 127.5 - 1))
    ```

    ## References
    Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks.
    """
    layers = hidden_activations(m, SATURATING)
    if not layers:
        return not_applicable("no hidden sigmoid or tanh layer")
    if m.pretrained:
        return not_applicable("the model was trained before: its saturation was learned")
    shares = {x.name: share for x in layers if (share := saturation(x)) is not None}
    if not shares:
        return not_measured("no saturation was measured")
    faulty = [x for x in layers if shares.get(x.name, 0.0) > limits["warning_share"]]
    return [_saturation_finding(m, group, shares, limits) for group in by_site(faulty)]


def _saturation_finding(m: Measurement, group: list[Layer], shares: dict[str, float], limits: Limits) -> Finding:
    worst = max(group, key=lambda x: shares[x.name])
    share = shares[worst.name]
    failure = probe_failure(m) if share > limits["error_share"] else ""
    limit = limits["error_share"] if failure else limits["warning_share"]
    message = (
        f"{percent(share)} of the outputs of {quoted(worst.name)} ({worst.function}) are saturated (limit {percent(limit)}), "
        f"at the start and after {worst.snapshots[-1].step} steps: hardly any gradient passes it"
    )
    if len(group) > 1:
        message += f"; the same in {layers_in_words(names(group))}"
    remedies = (
        Remedy("standardize-input", "bring the inputs to mean 0 and standard deviation 1", "advice"),
        Remedy("xavier-init", "initialise the layer before with xavier_uniform_ and zero biases", "safe"),
        *cures.normalise(m, [x for x in group if not x.normalized])[:1],
    )
    return found(
        "error" if failure else "warning",
        message,
        layers=names(group),
        location=worst.site,
        evidence=Evidence("saturated entries", share, limit, ">", "of the entries", worst.name),
        remedies=remedies[1:] if not m.data.given else remedies,
        confirmed=failure,
    )
