from collections.abc import Sequence

from gradcheck.analysis.wording import falls_short, layers_in_words, number, percent, probe_failure
from gradcheck.types.checks import Attention
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


@rule(
    "ACT005",
    up_to="error",
    needs=("attention", "probe"),
    limits={
        "entropy_error": Limit(0.05, "of log(keys)", "transformers with weights of std 2 have 0.03 and fail; healthy ones 0.97 to 1"),
        "entropy": Limit(0.3, "of log(keys)", "logits x30 give 0.15, weights of std 0.5 give 0.39: both train, but more slowly"),
        "logit_error": Limit(1e4, "", "heuristic; ViTs of 8e9 parameters diverged as their logits grew (Dehghani et al. 2023)"),
        "logit": Limit(1e3, "", "heuristic"),
        "logit_info": Limit(50.0, "", "heuristic: of two logits this far apart softmax gives one 1 in float32, and the other 2e-22"),
        "logit_std": Limit(3.0, "", "heuristic: scaled logits have about 1, without 1 / sqrt(d) they have sqrt(d), 8 for d = 64"),
    },
    explains=("INIT002", "GRAD001", "GRAD002", "LOSS003", "LOSS005", "OPT001", "OPT007", "OPT002"),
)
def attention_collapse(m: Measurement, limits: Limits) -> Verdict:
    """Attention puts all its weight on single keys before training.

    ## What it finds
    Attention heads whose weights have almost no entropy at the start: query and key weights that are too large, or
    scores that are not divided by the square root of the head's width.

    ## Why it matters
    A saturated softmax passes no gradient to queries and keys: the head keeps attending to keys that chance picked.

    ## How it is measured
    One forward pass of a copy before training, on four samples, without dropout. Fused attention is computed again for up to
    32 queries; softmaxes, and rows written by hand that sum to 1, count when they are multiplied with values. Entropy is that of
    a head's weights, a mean over queries, relative to log(keys that are not masked); queries with fewer than 4 such keys are
    left out. A pattern that all samples share, as distance biases give, does not count as a collapse.

    ## Limits and their sources
    A relative entropy below `entropy-error` 0.05 is an error if the probe training fails, else a warning. Below `entropy`
    0.3, or logits of a row with a standard deviation above `logit-std` 3: a warning, advice if the probe learns clearly.
    Logits beyond `logit-error` 1e4 are an error if the probe fails, beyond `logit` 1e3 a warning, beyond
    `logit-info` 50 advice; all three are advice only while the entropy is above `entropy`. Advice for a model that was
    trained before: trained heads may look at single keys. From 66 small transformers and CNNs; the limits for logits
    are heuristics.

    ## When to ignore it
    When hard attention is intended, as in pointer networks and content-addressed memories.

    ## Example
    ```python
    scores = q @ k.transpose(-2, -1)  # of width 512: a standard deviation of 23
    ```

    ## Use instead
    ```python
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    ```

    ## References
    Vaswani et al. 2017, section 3.2.1; Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy
    Collapse; Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities.
    """
    if not m.attentions:
        reason = next((n.why for n in m.not_measured if n.what == "attention"), None)
        return not_measured(reason) if reason else not_applicable("no attention over at least 4 keys was seen")
    groups: dict[Location | str, list[tuple[Attention, Evidence, Severity]]] = {}
    for attention in m.attentions:
        judged = _judged(m, attention, limits)
        if judged is not None:
            groups.setdefault(attention.site or "", []).append((attention, *judged))
    return [_finding(m, group) for group in groups.values()]


def _judged(m: Measurement, a: Attention, limits: Limits) -> tuple[Evidence, Severity] | None:
    """The measurement that is beyond its limit, and the severity that it justifies."""
    open_to_all = a.entropy >= limits["entropy"]
    failing = bool(probe_failure(m))
    strong: Severity = "error" if failing else "warning"
    weak: Severity = "warning" if falls_short(m) else "info"
    largest = a.logit_max or 0.0
    std = a.logit_std or 0.0
    if a.entropy < limits["entropy_error"]:
        verdict = _entropy(a, limits["entropy_error"]), strong
    elif largest > limits["logit_error"] and not open_to_all:
        verdict = _logit(a, largest, limits["logit_error"]), strong
    elif largest > limits["logit"] and not open_to_all:
        verdict = _logit(a, largest, limits["logit"]), "warning"
    elif not open_to_all:
        verdict = _entropy(a, limits["entropy"]), weak
    elif std > limits["logit_std"]:
        verdict = Evidence("standard deviation of the attention logits of a query", std, limits["logit_std"], ">", "", a.layer), weak
    elif largest > limits["logit_info"]:
        verdict = _logit(a, largest, limits["logit_info"]), "info"
    else:
        return None
    return (verdict[0], "info") if m.pretrained else verdict


def _entropy(a: Attention, limit: float) -> Evidence:
    return Evidence("entropy of the attention weights over log(keys)", a.entropy, limit, "<", "", a.layer)


def _logit(a: Attention, value: float, limit: float) -> Evidence:
    return Evidence("largest attention logit", value, limit, ">", "", a.layer)


def _finding(m: Measurement, group: Sequence[tuple[Attention, Evidence, Severity]]) -> Finding:
    """One finding for the layers of one place; the worst of them gives the numbers."""
    rank = ("error", "warning", "info")
    a, evidence, severity = min(group, key=lambda g: (rank.index(g[2]), g[0].entropy))
    layers = [g[0].layer for g in group]
    others = f"; the same in {layers_in_words(layers[1:])}" if len(layers) > 1 else ""
    return found(
        severity,
        f"attention in {a.layer or 'the model'} is {_state(a, evidence)} before training (limit {_limit(evidence)}; "
        f"{a.heads} heads, {a.keys} keys): its softmax passes little gradient to queries and keys{others}",
        layers=layers,
        location=a.site,
        evidence=(evidence, *_rest(a, evidence)),
        remedies=_remedies(m, a),
        confirmed=probe_failure(m),
    )


def _state(a: Attention, evidence: Evidence) -> str:
    if evidence.comparison == "<":
        return f"collapsed: a head's weights have {percent(a.entropy)} of the largest possible entropy"
    if evidence.quantity.startswith("largest"):
        return f"saturated: its logits reach {number(evidence.value)}"
    return f"too sharp: the logits of a query have standard deviation {number(evidence.value)}"


def _limit(evidence: Evidence) -> str:
    limit = evidence.limit if evidence.limit is not None else 0.0
    return percent(limit) if evidence.comparison == "<" else number(limit)


def _rest(a: Attention, first: Evidence) -> list[Evidence]:
    known = [
        Evidence("entropy of the attention weights over log(keys)", a.entropy, None, "=", "", a.layer),
        Evidence("largest attention logit", a.logit_max or 0.0, None, "=", "", a.layer) if a.logit_max is not None else None,
        Evidence("standard deviation of the attention logits of a query", a.logit_std or 0.0, None, "=", "", a.layer)
        if a.logit_std is not None
        else None,
    ]
    return [e for e in known if e is not None and e.quantity != first.quantity]


def _remedies(m: Measurement, a: Attention) -> tuple[Remedy, ...]:
    std = max(a.logit_std or 1.0, 1.0)
    scale = Remedy(
        "scale-attention",
        f"scale the scores by 1 / sqrt(width of a head); if they are, divide them by {number(std)} so that a query's logits have "
        "standard deviation 1",
        "safe",
    )
    smaller = Remedy("smaller-query-key-init", f"initialise query and key weights {number(std**0.5)} times smaller each", "safe")
    norm = Remedy("qk-norm", "normalise queries and keys with LayerNorm before their product", "unsafe")
    return (norm,) if m.pretrained else (scale, smaller, norm)
