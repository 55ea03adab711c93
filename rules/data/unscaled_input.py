import math
from collections.abc import Sequence

from gradcheck.analysis.activations import SCALING
from gradcheck.analysis.layer_groups import in_order
from gradcheck.analysis.wording import BY_VALUE, SYNTHETIC, number, percent
from gradcheck.rules.data import FLOATING
from gradcheck.types.data import InputFacts
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.layers import Layer
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

WEIGHTED = ("linear", "conv", "recurrent")
UNBOUNDED = SCALING - {"relu6"}  # their outputs scale with their inputs, however large
RESCALED = 20.0  # an output this many times too quiet for the input: trained filters are within 10


@rule(
    "DATA001",
    up_to="error",
    needs=("data",),
    limits={
        "largest_std": Limit(10.0, "", "calibration E2: inputs x100 raise the first loss 6 to 8 times without normalisation"),
        "smallest_std": Limit(2e-3, "", "images divided by 255 twice have 0.001 to 0.0015; waveforms 0.05, one-hot rows 0.005"),
        "feature_std_ratio": Limit(1e3, "", "heuristic"),
        "loud_std": Limit(3.0, "", "heuristic: the loud feature, not a rare one, makes the ratio"),
        "offset": Limit(3.0, "times the std", "heuristic"),
        "large_mean": Limit(10.0, "", "heuristic: log-spectrograms (mean -4) are healthy"),
    },
    explains="GRAPH008 LOSS003 LOSS005 ACT001 ACT002 INIT001 OPT001 OPT007 OPT002 GRAD002 GRAD004 CLIP001 NUM001".split(),
)
def unscaled_input(m: Measurement, limits: Limits) -> Verdict:
    """Inputs reach the first layer far from zero mean and unit scale.

    ## What it finds
    Float inputs with a large or a tiny standard deviation, with an offset that is large against their spread, and tables
    whose features differ by orders of magnitude. Data that are scaled in place each time they are read.

    ## Why it matters
    Initialisations assume inputs of about unit scale. Large ones saturate the first activations and ask for a small
    learning rate; next to a feature of scale 1000, one of scale 1 is hardly learned at all.

    ## How it is measured
    Mean and standard deviation of each input over all batches of the scan, for tables also by feature. What the model makes of its
    inputs by itself, such as the number of a step as a float, is looked at where the first trained layers take it, feature by feature.
    Of a data set that keeps arrays or tensors the rows of the first samples are compared before and after they are read; where one
    has changed, it is read once more, line by line, and put back.

    ## Limits and their sources
    A warning: a standard deviation above `largest-std` 10 or below `smallest-std` 0.002; features whose standard deviations
    differ by more than `feature-std-ratio` 1000 while the input's own is above `loud-std` 3; a mean beyond `offset` 3 standard
    deviations and beyond `large-mean` 10. Advice: the ratio or the offset alone. All limits are heuristics. Integers, inputs of
    embeddings and normalizations, values within [0, 1], and sparse counts are exempt; inputs that the model rescales before its
    first layer get advice only. A large scale is no finding where a normalization takes the first layer's output, directly or
    behind a ReLU, nor is an offset where it is a batch normalization: digits times 100 then train to the same loss. Tiny values
    and features of different scale remain, which it does not mend. Data that change with each reading are an error by
    themselves: from the second epoch on they are different data. An error when the probe fails, and a paired training with
    standardized inputs learns.

    ## When to ignore it
    When the model was pretrained on inputs like these, or scales them itself.

    ## Example
    ```python
    x = torch.from_numpy(images).float()  # 0 to 255
    ```

    ## Use instead
    ```python
    x = torch.from_numpy(images).float() / 255
    x = (x - x.mean()) / x.std()
    ```

    ## References
    LeCun et al., "Efficient BackProp", 1998, section 4.3. Schoop et al., "UMLAUT", CHI 2021.
    """
    if m.loop is not None and m.loop.reads is not None and m.loop.reads.changed:
        return [_changed_by_reading(m.loop.reads.changed_site)]
    if not m.data.given:
        return not_applicable(SYNTHETIC)
    judged = [x for x in m.data.inputs if x.dtype.removeprefix("torch.").startswith(FLOATING) and len(x.shape) > 1]
    if not judged and not m.entering:
        return not_applicable("no input of floating dtype with features")
    seen = [_unscaled(m, x, limits) for x in judged if x.used_by not in ("embedding", "norm") and x.std > 0 and math.isfinite(x.std)]
    findings = [f for f in seen if f is not None]
    return findings if any(f.severity != "info" for f in findings) else [*findings, *_entering(m, limits)]


def _changed_by_reading(site: Location | None) -> Finding:
    message = (
        "each time a sample is read it is changed where the data set keeps it (2 of 2 readings; limit 0): what was scaled once is scaled "
        "again in every epoch"
    )
    cure = Remedy("copy-before-change", "copy the row first (x = self.x[i].copy(), or .clone()), or compute a new one: x = x / 255", "safe")
    evidence = Evidence("readings that change the data", 2, 0, ">")
    return found("error", message, location=site, evidence=evidence, remedies=cure, confirmed=BY_VALUE)


def _unscaled(m: Measurement, x: InputFacts, limits: Limits) -> Finding | None:
    severity: Severity = "warning"
    offset = abs(x.mean) / x.std
    ratio = x.feature_std_ratio or 1.0
    sparse = x.min == 0 and x.mean < 0.2 * x.std
    unit = x.min >= 0 and x.max <= 1
    if ratio > limits["feature_std_ratio"] and not unit:
        what = f"its features' standard deviations differ {number(ratio)} times (limit {number(limits['feature_std_ratio'])})"
        evidence = Evidence("largest over smallest standard deviation of a feature", ratio, limits["feature_std_ratio"], ">")
        severity = "warning" if x.std > limits["loud_std"] else "info"
    elif x.std > limits["largest_std"]:
        if _normalization_after(m, x) is not None:
            return None
        what = f"its standard deviation is {number(x.std)} (limit {number(limits['largest_std'])})"
        evidence = Evidence("standard deviation of the input", x.std, limits["largest_std"], ">")
    elif x.std < limits["smallest_std"] and max(abs(x.min), abs(x.max)) < 10 * limits["smallest_std"]:
        what = f"its standard deviation is {number(x.std)} (limit {number(limits['smallest_std'])})"
        evidence = Evidence("standard deviation of the input", x.std, limits["smallest_std"], "<")
    elif offset > limits["offset"] and not unit:
        norm = _normalization_after(m, x)
        if norm is not None and any(n.layer == norm.name and n.batch and n.of_batch for n in m.norms):
            return None
        what = f"its mean {number(x.mean)} is {number(offset)} standard deviations from 0 (limit {number(limits['offset'])})"
        evidence = Evidence("mean of the input over its standard deviation", offset, limits["offset"], ">")
        severity = "warning" if abs(x.mean) > limits["large_mean"] else "info"
    else:
        return None
    if sparse or x.used_by not in WEIGHTED or not _arrives_unscaled(m, x):
        severity = "info"
    return found(
        severity,
        f"input {x.name} {list(x.shape)} is unscaled: {what}; it spans {number(x.min)} to {number(x.max)}, while initial weights and "
        "common learning rates assume about zero mean and unit scale",
        location=_first_site(m, x),
        evidence=(
            evidence,
            Evidence("mean of the input", x.mean, None, "="),
            Evidence("standard deviation of the input", x.std, None, "="),
        ),
        remedies=_standardize(x, ratio > limits["feature_std_ratio"]),
    )


def _entering(m: Measurement, limits: Limits) -> list[Finding]:
    """What the model makes of its inputs before the first trained layer: a step's number, a position, an index as a float."""
    known = {x.std for x in m.data.inputs}
    loud = [e for e in m.entering if e.std > limits["largest_std"] and e.std not in known and not (e.min == 0 and e.mean < 0.2 * e.std)]
    e = max(loud, key=lambda e: e.std, default=None)
    if e is None or any(e.max <= x.max and x.min <= e.min and x.dtype.startswith(FLOATING) for x in m.data.inputs):
        return []
    layers = in_order(m)
    first = next((i for i, y in enumerate(layers) if y.name == e.layer), None)
    if first is None or _normalization_behind(layers, first) is not None:
        return []
    message = (
        f"{e.layer or 'the first layer'} is given unscaled numbers: {percent(e.share)} of its {e.shape[-1]} inputs have a standard "
        f"deviation of about {number(e.std)} (limit {number(limits['largest_std'])}) and span {number(e.min)} to {number(e.max)}, while "
        "initial weights and common learning rates assume about zero mean and unit scale"
    )
    evidence = Evidence("standard deviation of the loudest input", e.std, limits["largest_std"], ">", "", e.layer)
    text = f"scale them before the layer: divide by {number(max(abs(e.min), abs(e.max)))}, or embed them (sine and cosine, nn.Embedding)"
    cure = Remedy("standardize-input", text, "safe")
    return [found("warning", message, layers=[e.layer], location=layers[first].site or e.site, evidence=evidence, remedies=cure)]


def _arrives_unscaled(m: Measurement, x: InputFacts) -> bool:
    """Whether the first layer answers as random weights would to this input; far less means that the model rescales it first.

    E[y^2] = fan_in * std(W)^2 * E[x^2] for weights that are independent of x. Unknown counts as unscaled.
    """
    layer = next((y for y in m.layers if y.kind == x.used_by), None)
    snapshot = layer.at(0) if layer else None
    weight = next((p for name in layer.parameters if (p := m.parameter(name)) and len(p.shape) > 1), None) if layer else None
    if layer is None or snapshot is None or snapshot.output is None or weight is None or not layer.fan_in:
        return True
    expected = (layer.fan_in**0.5) * weight.std * math.hypot(x.mean, x.std)
    return not snapshot.output.rms < expected / RESCALED


def _normalization_after(m: Measurement, x: InputFacts) -> Layer | None:
    """The normalization that takes what the first layer makes of an input, as it is or through a rectifier: it divides the scale out."""
    layers = in_order(m)
    first = next((i for i, y in enumerate(layers) if y.kind == x.used_by), None)
    return _normalization_behind(layers, first) if first is not None else None


def _normalization_behind(layers: Sequence[Layer], first: int) -> Layer | None:
    if not (layers[first].normalized or layers[first].activation in UNBOUNDED):
        return None
    for y in layers[first + 1 :]:
        if y.kind == "norm":
            return y
        if y.kind in (*WEIGHTED, "embedding", "attention") or (y.kind == "activation" and y.function not in UNBOUNDED):
            return None
    return None


def _standardize(x: InputFacts, by_feature: bool) -> Remedy:
    if by_feature:
        return Remedy(
            "standardize-input",
            "subtract each feature's mean and divide by its standard deviation, both taken over the training data",
            "safe",
        )
    return Remedy("standardize-input", f"subtract {number(x.mean)} and divide by {number(x.std)} before the first layer", "safe")


def _first_site(m: Measurement, x: InputFacts) -> Location | None:
    """Where the first layer of the kind that takes the input is made."""
    layer = next((y for y in m.layers if y.kind == x.used_by), None)
    return layer.site if layer else None
