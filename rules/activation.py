"""What activations let through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradcheck.judge.layers import BODY_KINDS, body, by_site, gate_makers, in_order, names, output_side
from gradcheck.judge.protocol import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.judge.signal import gradient_trend
from gradcheck.nouns.verdict import Evidence, Remedy
from gradcheck.progress import any_learned, verdict
from gradcheck.rules import cures
from gradcheck.rules.words import BY_VALUE, layers_in_words, number, percent, probe_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradcheck.nouns.measurement import Layer, Measurement, Snapshot
    from gradcheck.nouns.verdict import Finding, Severity

BOUNDED = ("sigmoid", "tanh", "hardsigmoid", "softsign", "hardtanh")


def hidden_activations(m: Measurement, functions: Sequence[str]) -> list[Layer]:
    """Activations of these functions that are neither gates nor on the way from the last layer to the loss."""
    return [x for x in in_order(m) if x.kind == "activation" and x.function in functions and not x.gate and not output_side(m, x)]


# -------------------------------------------------------------------------------- saturation


def saturation(layer: Layer) -> float | None:
    """The smaller of its saturated shares at the start and at the last measured step."""
    first, last = layer.at(0), layer.at(-1)
    if first is None or last is None or first.saturated is None or last.saturated is None:
        return None
    return min(first.saturated, last.saturated)


@rule(
    "ACT001",
    "saturated-activation",
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
    explains=("GRAD001", "OPT002", "GRAPH008", "LOSS005"),
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
    When the layer is meant to give near-binary codes.

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
    layers = hidden_activations(m, BOUNDED)
    if not layers:
        return not_applicable("no hidden sigmoid or tanh layer")
    if m.pretrained:
        return not_applicable("the model was trained before: its saturation was learned")
    shares = {x.name: share for x in layers if (share := saturation(x)) is not None}
    if not shares:
        return not_measured("no saturation was measured")
    sick = [x for x in layers if shares.get(x.name, 0.0) > limits["warning_share"]]
    return [_saturation_finding(m, group, shares, limits) for group in by_site(sick)]


def _saturation_finding(m: Measurement, group: list[Layer], shares: dict[str, float], limits: Limits) -> Finding:
    worst = max(group, key=lambda x: shares[x.name])
    share = shares[worst.name]
    failure = probe_failure(m) if share > limits["error_share"] else ""
    limit = limits["error_share"] if failure else limits["warning_share"]
    message = (
        f"{percent(share)} of the outputs of {worst.name} ({worst.function}) are saturated (limit {percent(limit)}), "
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
        evidence=(Evidence("saturated entries", share, limit, ">", "of the entries", worst.name),),
        remedies=remedies[1:] if not m.data.given else remedies,
        confirmed=failure,
    )


# -------------------------------------------------------------------------------- dead units


def dead_share(layer: Layer) -> float:
    return (layer.dead_units or 0) / layer.units if layer.units else 0.0


@rule(
    "ACT002",
    "dead-units",
    up_to="error",
    needs=("units", "graph", "probe"),
    limits={
        "warning_share": Limit(
            0.5, "of the units", "healthy trained networks reach 0.05 to 0.19 at 64 samples and more; SageMaker's default"
        ),
        "error_share": Limit(0.8, "of the units", "networks that a rate of 0.03 to 0.1 with Adam broke: 0.78 to 0.94"),
        "samples": Limit(256, "samples x positions", "at 4 samples 27 % of a healthy network's units look dead, at 64 19 %, at 1400 14 %"),
        "samples_one_batch": Limit(1024, "samples x positions", "the same, for a single batch"),
        "samples_severe": Limit(64, "samples x positions", "at 64 a healthy network seems to have 19 % dead units, far from 80 %"),
        "batches": Limit(2, "batches", "a unit may have nothing to do in one batch"),
    },
    explains=("GRAD004", "OPT002", "GRAPH008", "LOSS005"),
)
def dead_units(m: Measurement, limits: Limits) -> Verdict:
    """Units (channels) of ReLU-like layers that are never active, whatever the input.

    ## What it finds
    ReLU-like layers most of whose units gave no positive value on any sample or position of any measured batch.
    Gates, and what feeds them, are exempt. Sparse activity is healthy and not meant.

    ## Why it matters
    A dead unit passes neither signal nor gradient, and no gradient means that it stays dead. When all units of
    a layer are dead and nothing bypasses it, everything before it stops learning.

    ## How it is measured
    Units without any positive output over all samples and positions of at least `samples` 256 in `batches` 2
    batches (or `samples-one-batch` 1024 in one); `samples-severe` 64 are enough to see that more than
    `error-share` of the units are dead. Compared with the same count before the first step: dead from the start
    points to the initialisation, killed during the probe training to the learning rate.

    ## Limits and their sources
    `warning-share` 50 % of a layer's units: a warning. `error-share` 80 %: an error if the probe training
    fails. All units of a layer that nothing bypasses: an error unless the probe learns. When the probe learns,
    a share below `error-share` is advice: SqueezeNet reaches 70 % in a narrow layer and trains. Other healthy
    networks reach 5 to 19 %.

    ## When to ignore it
    In pruned models, and in layers that these batches do not use.

    ## Example
    ```python
    nn.init.constant_(self.fc.bias, -10.0)  # relu(self.fc(x)) is zero for every x
    ```

    ## Use instead
    ```python
    nn.init.zeros_(self.fc.bias)
    ```

    ## References
    Lu et al. 2019, Dying ReLU and Initialization.
    """
    aside = gate_makers(m)
    layers = [x for x in m.of_kind("activation") if x.units and x.dead_units is not None and not x.gate and x.name not in aside]
    if not layers:
        return not_applicable("no ReLU-like layer whose units can be counted")
    judged = [x for x in layers if _looked_at_enough(x, limits)]
    if not judged:
        most = max(x.effective_samples for x in layers)
        return not_measured(
            f"{most} samples x positions are too few to call a unit dead (needed: {number(limits['samples'])} in two batches)"
        )
    sick = [x for x in judged if dead_share(x) >= limits["warning_share"]]
    return [_dead_finding(m, group, limits) for group in by_site(sick)]


def _looked_at_enough(x: Layer, limits: Limits) -> bool:
    needed = limits["samples_severe"] if dead_share(x) >= limits["error_share"] else limits["samples"]
    several = x.effective_samples >= needed and x.dead_batches >= limits["batches"]
    return several or x.effective_samples >= limits["samples_one_batch"]


def _dead_severity(m: Measurement, group: list[Layer], limits: Limits) -> tuple[Severity, str]:
    severe = max(map(dead_share, group)) >= limits["error_share"]
    if verdict(m) == "learns":
        return ("warning" if severe else "info"), ""
    if not severe:
        return "warning", ""
    if failure := probe_failure(m):
        return "error", failure
    shut = any(x.dead_units == x.units and not x.residual for x in group)
    return ("error", BY_VALUE) if shut and not any_learned(m) else ("warning", "")


def _dead_finding(m: Measurement, group: list[Layer], limits: Limits) -> Finding:
    worst = max(group, key=dead_share)
    share, total, dead = dead_share(worst), worst.units or 0, worst.dead_units or 0
    severity, confirmed = _dead_severity(m, group, limits)
    limit = limits["error_share"] if severity == "error" else limits["warning_share"]
    from_start = worst.dead_at_start is None or worst.dead_at_start >= 0.5 * dead
    message = (
        f"{dead} of {total} units ({percent(share)}; limit {percent(limit)}) of {worst.name} are never active over "
        f"{worst.effective_samples} samples x positions{_since(worst)}: they pass neither signal nor gradient"
    )
    if len(group) > 1:
        message += f"; the same in {layers_in_words(names(group))}"
    return found(
        severity,
        message,
        layers=names(group),
        location=worst.site,
        evidence=(Evidence("dead units", share, limit, ">=", "of the units", worst.name),),
        remedies=_dead_remedies(m, from_start),
        confirmed=confirmed,
    )


def _since(x: Layer) -> str:
    if x.dead_at_start is None:
        return ""
    if x.dead_at_start >= (x.dead_units or 0):
        return ", all of them from the start"
    if x.dead_at_start == 0:
        return ", none of them at the start: the probe training killed them"
    return f", {x.dead_at_start} of them from the start, the others since the probe training"


def _dead_remedies(m: Measurement, from_start: bool) -> tuple[Remedy, ...]:
    leak = Remedy("replace-activation", "replace ReLU by LeakyReLU(0.01) or GELU: checkpoint keys stay the same", "unsafe")
    if from_start:
        return (Remedy("he-init", "initialise the layer before with kaiming_normal_ and zero biases", "safe"), leak)
    lower = f"lower the learning rate from {number(m.optimizer.lr)} to {number(m.optimizer.lr / 10)}, or warm it up"
    return (Remedy("lower-learning-rate", lower, "advice"), leak)


# ------------------------------------------------------------------------------ deep sigmoid


def sigmoid_stacks(m: Measurement) -> list[list[Layer]]:
    """Hidden sigmoid-like activations in a row, a layer with weights before each, without normalization or bypass between."""
    hidden = hidden_activations(m, cures.SIGMOID_LIKE)
    stacks: list[list[Layer]] = [[]]
    weighted = False
    for x in in_order(m):
        if x.kind == "norm" or x.normalized or x.residual:
            stacks.append([])
        if x.kind in BODY_KINDS:
            weighted = True
        elif weighted and x in hidden:
            stacks[-1].append(x)
            weighted = False
    shared = {x.function for x in hidden if x.calls > 1}
    return [*stacks, *_stacks_behind(m, shared)] if shared else stacks


def _stacks_behind(m: Measurement, functions: set[str | None]) -> list[list[Layer]]:
    """The same for activations that one module or one line applies many times, told by the layers with weights before each."""
    gates = gate_makers(m)
    stacks: list[list[Layer]] = [[]]
    for x in in_order(m):
        if x.kind in BODY_KINDS and x.activation in functions and x.name not in gates and not x.normalized and not x.residual:
            stacks[-1].append(x)
        elif x.kind in BODY_KINDS or x.kind == "norm":
            stacks.append([])
    return stacks


@rule(
    "ACT003",
    "deep-sigmoid",
    up_to="error",
    needs=("graph", "signals", "probe"),
    limits={
        "stacked": Limit(4, "layers", "0 of 13 such networks train as they are, or after data-driven rescaling"),
        "error_total": Limit(6.0, "decades", "96 of 96 random networks whose gradient changes by 6 decades or more fail at every rate"),
    },
    explains=("GRAD001", "ACT001", "ACT004", "INIT001", "INIT002", "INIT007", "OPT001", "OPT002", "GRAPH008", "LOSS005"),
)
def deep_sigmoid(m: Measurement, limits: Limits) -> Verdict:
    """Four or more sigmoid-like hidden layers in a row without normalisation.

    ## What it finds
    Stacks of sigmoid, softplus, hardsigmoid or logsigmoid layers with neither normalization nor a residual
    connection between them. Gates, squeeze-and-excitation and output activations do not count.

    ## Why it matters
    A sigmoid's derivative is at most 0.25 and its output is never centred: each layer divides the gradient by 5
    or more, and draws all samples to one point. No initialisation cures it (0 of 13 networks; data-driven
    scaling 0 of 13).

    ## How it is measured
    From the order of layers in the forward pass. The gradient's trend over depth is measured before the first
    step.

    ## Limits and their sources
    `stacked` 4 layers: a warning. An error when the probe training fails, or when the gradient shrinks by
    `error-total` 6 decades and the probe does not learn.

    ## When to ignore it
    When the stack trains in the time that you have.

    ## Example
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(6)]
    ```

    ## Use instead
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)]  # with kaiming_normal_
    ```

    ## References
    Glorot and Bengio 2010; Schoenholz et al. 2016.
    """
    if not hidden_activations(m, cures.SIGMOID_LIKE):
        return not_applicable("no hidden sigmoid-like layer")
    stack = max(sigmoid_stacks(m), key=len)
    if len(stack) < limits["stacked"]:
        return []
    trend = gradient_trend(m, 0)
    failure = probe_failure(m)
    steep = trend.slope > 0 and trend.total >= limits["error_total"] and verdict(m) != "learns" and not any_learned(m)
    function = stack[0].function or stack[0].activation or "sigmoid"
    size = f"; the gradient shrinks by {number(trend.total)} decades on the way" if trend.slope > 0 and trend.n >= 2 else ""
    means = "no initialisation carries a gradient through them" if failure or steep else "they learn slowly, if at all"
    message = (
        f"{len(stack)} {function} layers in a row without normalization (limit {number(limits['stacked'])}): "
        f"{layers_in_words(names(stack))}{size}: {means}"
    )
    evidence = [Evidence("sigmoid-like layers in a row", len(stack), limits["stacked"], ">=", "layers", stack[0].name)]
    if trend.n >= 2:
        evidence.append(Evidence("change of the gradient over depth", trend.total, limits["error_total"], ">=", "decades", stack[0].name))
    severity: Severity = "error" if failure or steep else "warning"
    remedies = (cures.other_activation(function), *cures.normalise(m, body(m)))
    confirmed = failure or (BY_VALUE if steep else "")
    return [
        found(severity, message, layers=names(stack), location=stack[0].site, evidence=evidence, remedies=remedies, confirmed=confirmed)
    ]


# --------------------------------------------------------------------------------- collapse


def last_with(m: Measurement, value: Callable[[Snapshot], float | None]) -> Layer | None:
    """The last head, else the last norm, for which the value was measured."""
    known = [x for x in in_order(m) if (s := x.at(0)) is not None and value(s) is not None]
    heads = [x for x in known if x.head]
    norms = [x for x in known if x.kind == "norm"]
    return heads[-1] if heads else (norms[-1] if norms else None)


def _sample_cosine(s: Snapshot) -> float | None:
    return s.sample_cosine


def _token_cosine(s: Snapshot) -> float | None:
    return s.token_cosine


def collapse(layer: Layer, value: Callable[[Snapshot], float | None]) -> float | None:
    """The smaller similarity of the first and the last measured step; None unless the last is at least step 3."""
    first, last = layer.at(0), layer.at(-1)
    if first is None or last is None or last.step < 3:
        return None
    a, b = value(first), value(last)
    return None if a is None or b is None else min(a, b)


@rule(
    "ACT004",
    "collapsed-representation",
    up_to="error",
    needs=("similarity", "graph", "probe"),
    limits={
        "sample_distance": Limit(1e-4, "1 - cosine", "67 of 72 random networks below it fail at every rate; healthy: CLS-token nets only"),
        "token_cosine": Limit(0.999, "cosine", "transformers without residuals have 1.000; the highest of the healthy ones 0.93"),
        "token_cosine_info": Limit(0.99, "cosine", "a 16-block post-norm transformer that trains slowly has 0.995"),
        "layers": Limit(12, "layers", "about six blocks; a 3-block transformer with 1.000 still reached 90 %"),
    },
    explains=("OPT001", "OPT002", "LOSS005"),
)
def collapsed_representation(m: Measurement, limits: Limits) -> Verdict:
    """All samples, or all tokens of a sample, reach the output as one and the same vector.

    ## What it finds
    Features before the head that point in one direction for every sample; and sequences whose tokens have
    become equal on the residual stream (rank collapse).

    ## Why it matters
    What the head cannot tell apart it cannot classify: the loss stays at that of a constant guess.

    ## How it is measured
    The mean pairwise cosine of the features that reach the head (else the last normalization), over samples and
    over the tokens of each sample, before the first step and at the last measured one (step 3 at least: the
    class token of a vision transformer carries nothing at the start). The smaller of the two counts. Branches,
    such as the output of attention, are not looked at.

    ## Limits and their sources
    Samples: a distance (1 - cosine) below `sample-distance` 0.0001 is a warning, an error if the probe training
    fails, advice if it learns. Tokens: a cosine above `token-cosine` 0.999 is a warning; an error in models of
    at least `layers` 12 layers whose tokens enter distinct, or if the probe fails; above `token-cosine-info`
    0.99 it is advice.

    ## When to ignore it
    When all samples of the batches, or all tokens, are meant to be alike.

    ## Example
    ```python
    for block in self.blocks:
        x = block(self.norm(x))  # no bypass: tokens average out
    ```

    ## Use instead
    ```python
    for block in self.blocks:
        x = x + block(self.norm(x))
    ```

    ## References
    Dong et al. 2021, Attention is not all you need; Luther and Seung 2019, Sample Variance Decay in Randomly
    Initialized ReLU Networks.
    """
    samples, tokens = last_with(m, _sample_cosine), last_with(m, _token_cosine)
    if samples is None and tokens is None:
        return not_applicable("no features of several samples or tokens reach a head or a normalization")
    if max(m.measured_steps, default=0) < 3:
        return not_measured("no step from 3 on was measured, and similarity before it is healthy in some models")
    finding = _token_collapse(m, tokens, limits) if tokens is not None else None
    if (finding is None or finding.severity == "info") and samples is not None:
        finding = _sample_collapse(m, samples, limits) or finding
    return [finding] if finding is not None else []


def _collapse_remedies(m: Measurement, tokens: bool) -> tuple[Remedy, ...]:
    layers = body(m)
    cures_first = cures.bypass(layers) if tokens or not any(x.residual for x in layers) else ()
    return (*cures_first, *cures.normalise(m, layers), *(() if tokens else cures.reinitialise(m, layers)))


def _sample_collapse(m: Measurement, layer: Layer, limits: Limits) -> Finding | None:
    cosine = collapse(layer, _sample_cosine)
    if cosine is None or 1 - cosine >= limits["sample_distance"]:
        return None
    failure = probe_failure(m)
    severity: Severity = "error" if failure else ("info" if verdict(m) == "learns" else "warning")
    message = (
        f"all samples reach {layer.name} as one point: 1 - cosine is {number(max(0.0, 1 - cosine))} "
        f"(limit {number(limits['sample_distance'])}), at the start and after {layer.snapshots[-1].step} steps: it cannot tell them apart"
    )
    evidence = (Evidence("1 - mean cosine of the samples", max(0.0, 1 - cosine), limits["sample_distance"], "<", "", layer.name),)
    remedies = _collapse_remedies(m, tokens=False)
    return found(severity, message, layers=(layer.name,), location=layer.site, evidence=evidence, remedies=remedies, confirmed=failure)


def _token_collapse(m: Measurement, layer: Layer, limits: Limits) -> Finding | None:
    cosine = collapse(layer, _token_cosine)
    if cosine is None or cosine <= limits["token_cosine_info"]:
        return None
    severity, confirmed = _token_severity(m, layer, cosine, limits)
    limit = limits["token_cosine_info"] if cosine <= limits["token_cosine"] else limits["token_cosine"]
    message = (
        f"the tokens of a sample reach {layer.name} almost equal: mean cosine {cosine:.4f} (limit {number(limit)}), at the start and "
        f"after {layer.snapshots[-1].step} steps: what distinguishes positions is lost"
    )
    evidence = (Evidence("mean cosine of the tokens", cosine, limit, ">", "", layer.name),)
    remedies = _collapse_remedies(m, tokens=True)
    return found(severity, message, layers=(layer.name,), location=layer.site, evidence=evidence, remedies=remedies, confirmed=confirmed)


def _token_severity(m: Measurement, layer: Layer, cosine: float, limits: Limits) -> tuple[Severity, str]:
    if cosine <= limits["token_cosine"]:
        return "info", ""
    if failure := probe_failure(m):
        return "error", failure
    earlier = (s.token_cosine for x in in_order(m) if x.order < layer.order and (s := x.at(0)) is not None)
    entered = next((c for c in earlier if c is not None), None)
    distinct = entered is not None and entered <= limits["token_cosine_info"]
    deep = len(body(m)) >= limits["layers"]
    if distinct and deep and verdict(m) != "learns" and not any_learned(m):
        return "error", BY_VALUE
    return "warning", ""


RULES = (saturated_activation, dead_units, deep_sigmoid, collapsed_representation)
