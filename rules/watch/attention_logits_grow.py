from gradcheck.analysis.wording import number, quoted
from gradcheck.rules.watch import NOT_WATCHED, grows, others
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.gauges import Gauge
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "WATCH003",
    up_to="warning",
    needs=("gauges", "signals"),
    limits={
        "logit": Limit(100, "", "Kimi K2 (arXiv 2507.20534), Megatron; measured: healthy runs have at most 14, at a high rate 39"),
        "early": Limit(50, "", "heuristic: half of that, where growth leads to it"),
        "growth": Limit(1.3, "times", "heuristic: over a quarter of the run: what has come to rest does not grow"),
    },
    explains=("LOG002", "LOG003"),
)
def attention_logits_grow(m: Measurement, limits: Limits) -> Verdict:
    """The logits of an attention head grow without bound.

    ## What it finds
    Heads whose largest logit passes 100, or half of that and keeps growing.

    ## Why it matters
    The softmax of such a head is a choice of one key: it passes no gradient, its rounding errors in bfloat16 are as large as the
    logits' differences, and a small change of a weight flips it. Divergence follows within some hundred steps of a large training.

    ## How it is measured
    At the measured steps, for each head, on up to four samples and 32 queries: the largest logit that is not masked, and the
    entropy of the weights. `scaled_dot_product_attention`, `nn.MultiheadAttention` and softmaxes over keys are seen; kernels
    that compute attention in one call of their own are not. Growth compares medians of the last two quarters of the run.

    ## Limits and their sources
    `logit` (100): where Kimi K2 and Megatron begin to clip queries and keys. `early` (50) together with `growth` (1.3 times).

    ## When to ignore it
    When queries and keys are normalised, and their scale is learned and bounded.

    ## Example
    ```python
    scores = q @ k.transpose(-1, -2) / math.sqrt(d)
    ```

    ## Use instead
    ```python
    q, k = q_norm(q), k_norm(k)  # RMSNorm over the width of a head
    scores = q @ k.transpose(-1, -2) / math.sqrt(d)
    ```

    ## References
    Kimi team 2025, Kimi K2 (arXiv 2507.20534); Dehghani et al. 2023, Scaling vision transformers to 22 billion parameters; Wortsman et
    al. 2023, Small-scale proxies for large-scale transformer training instabilities (arXiv 2309.14322).
    """
    heads = [g for g in m.gauges if g.quantity == "attention-logit" and g.values]
    if not heads:
        return not_applicable(NOT_WATCHED if not m.probe.live else "no attention was seen")
    bad = [(g, growth) for g in heads if _grows(g, growth := _growth(g), limits)]
    return [_finding(m, bad, limits)] if bad else []


def _growth(g: Gauge) -> float:
    known = grows(g)
    return known[1] / known[0] if known is not None and known[0] > 0 else 1.0


def _grows(g: Gauge, growth: float, limits: Limits) -> bool:
    last = g.values[-1]
    return last > limits["logit"] or (last > limits["early"] and growth > limits["growth"])


def _finding(m: Measurement, bad: list[tuple[Gauge, float]], limits: Limits) -> Finding:
    worst, growth = max(bad, key=lambda b: b[0].values[-1])
    last, over = worst.values[-1], worst.values[-1] > limits["logit"]
    limit = limits["logit"] if over else limits["early"]
    entropy = next((g.values[-1] for g in m.gauges if g.quantity == "attention-entropy" and g.name == worst.name and g.values), None)
    since = next((s for s, v in zip(worst.steps, worst.values, strict=True) if v > limit), worst.steps[-1])
    ahead = "past where others clip" if over else f"on its way to {number(limits['logit'])}"
    spread = f"; entropy {number(entropy)} of its log(keys)" if entropy is not None else ""
    message = (
        f"the logits of {quoted(worst.name)} have grown from {number(worst.values[0])} to {number(last)} (limit {number(limit)}, since "
        f"step {since}"
        f"{spread}{others(len(bad) - 1, 'head')}): {ahead}, some hundred steps before a divergence"
    )
    return found(
        "warning",
        message,
        layers=list(dict.fromkeys(g.layer for g, _ in bad)),
        location=worst.site,
        evidence=[
            Evidence("largest attention logit", last, limit, ">", "", worst.name),
            Evidence("growth over a quarter of the run", growth, limits["growth"], ">", "times", worst.name),
        ],
        remedies=Remedy("qk-norm", "normalise queries and keys (RMSNorm over the width of a head), or lower the rate"),
    )
