from collections.abc import Callable

from gradcheck.analysis.convergence import any_learned, training_outcome
from gradcheck.analysis.layer_groups import body, in_order
from gradcheck.analysis.wording import BY_VALUE, number, probe_failure, quoted
from gradcheck.rules import cures
from gradcheck.types.checks import Embeddings
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.layers import Layer, Snapshot
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

SAME = 1e-2  # of the loss's decrease: two losses closer than this count as equal (heuristic)


def last_with(m: Measurement, value: Callable[[Snapshot], float | None]) -> Layer | None:
    """The last head, else the last norm, for which the value was measured; not of a net that this training leaves as it is."""
    held = {p.layer for p in m.parameters}
    others = held - {p.layer for p in m.parameters if p.trainable}
    known = [x for x in in_order(m) if x.name not in others and (s := x.at(0)) is not None and value(s) is not None]
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
    up_to="error",
    needs=("similarity", "graph", "probe"),
    wants=("embeddings",),
    limits={
        "sample_distance": Limit(1e-4, "1 - cosine", "67 of 72 random networks below it fail at every rate; healthy: CLS-token nets only"),
        "token_cosine": Limit(0.999, "cosine", "transformers without residuals have 1.000; the highest of the healthy ones 0.93"),
        "token_cosine_info": Limit(0.99, "cosine", "a 16-block post-norm transformer that trains slowly has 0.995"),
        "contraction": Limit(1 / 3, "of the spread at the start", "measured: SimCLR, VICReg, SimSiam and BYOL on digits, see the page"),
        "layers": Limit(12, "layers", "about six blocks; a 3-block transformer with 1.000 still reached 90 %"),
    },
    explains=("OPT001", "OPT007", "OPT002", "LOSS005"),
)
def collapsed_representation(m: Measurement, limits: Limits) -> Verdict:
    """All samples, or all tokens of a sample, reach the output as the same vector.

    ## What it finds
    Features before the head that point in one direction for every sample; and sequences whose tokens have
    become equal on the residual stream (rank collapse). And embeddings that a loss draws together and nothing holds apart:
    self-distillation without a predictor or without a stopped gradient.

    ## Why it matters
    What the head cannot tell apart it cannot classify: the loss stays at that of a constant guess.

    ## How it is measured
    The mean pairwise cosine of the features that reach the head (else the last normalization), over samples and
    over the tokens of each sample, before the first step and at the last measured one (step 3 at least: the
    class token of a vision transformer carries nothing at the start). The smaller of the two counts. Branches,
    such as the output of attention, are not looked at, nor are layers that are not trained: a generator's first samples are one
    point to a discriminator.

    Embeddings are looked at where the loss takes nothing but what the model makes of its inputs: the standard deviation of the
    normalised embeddings over the samples times the root of their width (1 for points all around, 0 for one point), before
    training and after the probe; and the loss with one point, any point, in place of all of them. Where that is as low as
    the trained loss, one point is all that the loss asks for; a predictor on one side, with the gradient stopped on the other,
    is then what can keep them apart, and where both are there nothing is said. The embeddings are what the outermost modules give
    that give any; a teacher with its student's weights, shape by shape, is no predictor.

    ## Limits and their sources
    Samples: a distance (1 - cosine) below `sample-distance` 0.0001 is a warning, an error if the probe training
    fails, advice if it learns. Tokens: a cosine above `token-cosine` 0.999 is a warning; an error in models of
    at least `layers` 12 layers whose tokens enter distinct, or if the probe fails; above `token-cosine-info`
    0.99 it is advice. Embeddings: an error when one point would do, the loss fell, and the spread is below `contraction` a third
    of that at the start. Measured on digits, with layer, batch and no normalization, after 100 steps of Adam: 0.04 to 0.5 of the
    spread without stopped gradient, 0.1 to 0.16 without predictor; in SimCLR and VICReg 0.9 and more, and one point does not do.

    ## When to ignore it
    When all samples of a batch, or all tokens, are supposed to be alike.

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
    if m.embeddings is not None and (collapsed := _embeddings(m, m.embeddings, limits["contraction"])) is not None:
        return [collapsed]
    samples, tokens = last_with(m, _sample_cosine), last_with(m, _token_cosine)
    if samples is None and tokens is None and m.embeddings is not None:
        return []
    if samples is None and tokens is None:
        return not_applicable("no features of several samples or tokens reach a head or a normalization")
    if max(m.measured_steps, default=0) < 3:
        return not_measured("no step from 3 on was measured, and similarity before it is healthy in some models")
    finding = _token_collapse(m, tokens, limits) if tokens is not None else None
    if (finding is None or finding.severity == "info") and samples is not None:
        finding = _sample_collapse(m, samples, limits) or finding
    return [finding] if finding is not None else []


def _embeddings(m: Measurement, e: Embeddings, limit: float) -> Finding | None:
    """A single point would satisfy the loss, and the embeddings are on their way there."""
    fell = e.loss < e.start_loss and e.end < limit * e.start
    if not fell or e.constant_loss - e.loss > SAME * max(abs(e.start_loss - e.loss), abs(e.loss)):
        return None
    lacks = "one side has no predictor" if e.stopped else "gradient goes to both sides"
    message = (
        f"all embeddings become one point: their spread fell from {number(e.start)} to {number(e.end)} (limit {number(limit)} of it) "
        f"while the loss fell from {number(e.start_loss)} to {number(e.loss)}; one point for all gives {number(e.constant_loss)}, and "
        f"{lacks}: nothing holds them apart"
    )
    cure = Remedy(
        "asymmetric-sides", "put a predictor on one side and detach() the other, or add negatives or a term for the variance", "unsafe"
    )
    evidence = Evidence("spread of the normalised embeddings", e.end / e.start, limit, "<", "of that at the start")
    return found("error", message, location=e.site, evidence=evidence, remedies=cure, confirmed=BY_VALUE)


def _collapse_remedies(m: Measurement, tokens: bool) -> tuple[Remedy, ...]:
    layers = body(m)
    cures_first = cures.bypass(layers) if tokens or not any(x.residual for x in layers) else ()
    return (*cures_first, *cures.normalise(m, layers), *(() if tokens else cures.reinitialise(m, layers)))


def _sample_collapse(m: Measurement, layer: Layer, limits: Limits) -> Finding | None:
    cosine = collapse(layer, _sample_cosine)
    if cosine is None or 1 - cosine >= limits["sample_distance"]:
        return None
    failure = probe_failure(m)
    severity: Severity = "error" if failure else ("info" if training_outcome(m) == "learns" else "warning")
    message = (
        f"all samples reach {quoted(layer.name)} as the same vector: 1 - cosine is {number(max(0.0, 1 - cosine))} "
        f"(limit {number(limits['sample_distance'])}), at the start and after {layer.snapshots[-1].step} steps: it cannot tell them apart"
    )
    evidence = Evidence("1 - mean cosine of the samples", max(0.0, 1 - cosine), limits["sample_distance"], "<", "", layer.name)
    remedies = _collapse_remedies(m, tokens=False)
    return found(severity, message, layers=(layer.name,), location=layer.site, evidence=evidence, remedies=remedies, confirmed=failure)


def _token_collapse(m: Measurement, layer: Layer, limits: Limits) -> Finding | None:
    cosine = collapse(layer, _token_cosine)
    if cosine is None or cosine <= limits["token_cosine_info"]:
        return None
    severity, confirmed = _token_severity(m, layer, cosine, limits)
    limit = limits["token_cosine_info"] if cosine <= limits["token_cosine"] else limits["token_cosine"]
    message = (
        f"the tokens of a sample reach {quoted(layer.name)} almost equal: mean cosine {cosine:.4f} (limit {number(limit)}), at the "
        "start and "
        f"after {layer.snapshots[-1].step} steps: what distinguishes positions is lost"
    )
    evidence = Evidence("mean cosine of the tokens", cosine, limit, ">", "", layer.name)
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
    if distinct and deep and training_outcome(m) != "learns" and not any_learned(m):
        return "error", BY_VALUE
    return "warning", ""
