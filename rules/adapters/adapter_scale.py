from collections.abc import Sequence
from statistics import median

from gradcheck.analysis.wording import layers_in_words, number
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule
from gradcheck.types.structure import Adapter


@rule(
    "TUNE002",
    up_to="info",
    needs=("adapters", "probe"),
    limits={
        "high_rank": Limit(
            64, "of the product", "measured: ranks 4 to 256 at alpha / rank; from 64 on alpha / sqrt(rank) learns clearly more"
        ),
        "smallest_scale": Limit(2.0, "scale x sqrt(rank)", "measured: with 1 to 2 ranks of 64 to 256 learned no more than rank 16"),
        "largest_size": Limit(3.0, "of the weight", "healthy adapters: 0.02 to 1.0 after 100 to 150 steps; at ten times the rate up to 4"),
    },
)
def adapter_scale(m: Measurement, limits: Limits) -> Verdict:
    """Adapters whose scale does not suit their rank, or that outweigh what they adapt.

    ## What it finds
    Low-rank adapters of high rank whose product is multiplied by alpha / rank, so that the rank gains nothing; and adapters that after
    the short training are much larger than the weights beside them.

    ## Why it matters
    With alpha / rank what an adapter adds shrinks with its rank, faster than the rank helps: rank 256 learns like rank 16 and
    costs 16 times as much. With alpha / sqrt(rank) it keeps its size. An adapter much larger than its weight replaces
    what was learned before it.

    ## How it is measured
    The scale is what a layer adds to its output for random factors, divided by the product of these factors and the input;
    layers where that is no plain product (DoRA, products of entries) are left out. The size is the norm of scale times product
    over that of the weight, the median over the adapters, after the short training.

    ## Limits and their sources
    `high-rank` 64 and `smallest-scale` 2: measured on adapters of a frozen net of three layers, 150 steps of AdamW, alpha 16. At
    alpha / rank the loss is 2.02, 1.87, 1.86, 1.85 and 1.89 for ranks 4, 16, 64, 128 and 256 (scale x sqrt(rank) 8, 4, 2, 1.4 and
    1); at a scale x sqrt(rank) of 4 it is 2.16, 1.87, 1.35, 0.99 and 0.72. `largest-size` 3: healthy adapters have 0.02 to 1.0
    of their weight after 100 to 150 steps, at ten times the rate 0.9 to 4. Calibrated on the healthy models of
    `adapter-coverage`. Both factors at zero is an error of `zero-gradient`, which names them.

    ## When to ignore it
    When the learning rate was tuned for this rank and scale, or the adapter is meant to replace its weight. `fix` treats errors and
    warnings: it sets `use_rslora` where the severity of this rule is set to `warning`.

    ## Example
    ```python
    LoraConfig(r=256, lora_alpha=16)
    ```

    ## Use instead
    ```python
    LoraConfig(r=256, lora_alpha=16, use_rslora=True)
    ```

    ## References
    Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (arXiv 2312.03732); Hu et al. 2021, LoRA.
    """
    adaptation = required(m.adaptation, not_applicable("no frozen weight has an adapter"))
    known = [a for a in adaptation.adapters if a.scale is not None and a.size is not None and a.rank]
    if not known:
        return not_measured("no adapter is a plain product of two factors")
    small = [a for a in known if _rank(a) >= limits["high_rank"] and _strength(a) <= limits["smallest_scale"]]
    findings = [_scaled_down(small, limits["smallest_scale"])] if small else []
    size = median(a.size or 0.0 for a in known)
    if size > limits["largest_size"]:
        findings.append(_outweighs(m, known, size, limits["largest_size"]))
    return findings


def _rank(a: Adapter) -> int:
    return a.rank or 0


def _strength(a: Adapter) -> float:
    return (a.scale or 0.0) * _rank(a) ** 0.5


def _scaled_down(small: Sequence[Adapter], limit: float) -> Finding:
    a = min(small, key=_strength)
    better = number(float(f"{(a.scale or 0) * _rank(a) ** 0.5:.2g}"))
    message = (
        f"the adapters of {layers_in_words([x.layer for x in small])} have rank {_rank(a)} and scale {number(a.scale or 0)}: scale x "
        f"sqrt(rank) is {number(_strength(a))} (limit {number(limit)}), so that they learn no more than ones of a lower rank would"
    )
    text = f"divide alpha by sqrt(rank), not by rank (PEFT: use_rslora=True): a scale of {better}"
    return found(
        "info",
        message,
        layers=[x.layer for x in small],
        location=a.site,
        evidence=Evidence("scale x sqrt(rank)", _strength(a), limit, "<=", "", a.layer),
        remedies=Remedy("rank-stabilised-scale", text),
    )


def _outweighs(m: Measurement, known: Sequence[Adapter], size: float, limit: float) -> Finding:
    worst = max(known, key=lambda a: a.size or 0.0)
    message = (
        f"after {m.steps} steps the adapters are {number(size)} times as large as the weights that they adapt, the median of {len(known)} "
        f"(limit {number(limit)}): they replace what was learned before"
    )
    text = f"lower the rate, now {number(m.optimizer.lr)}, or the scale of the adapters"
    return found(
        "info",
        message,
        layers=[worst.layer],
        location=worst.site,
        evidence=Evidence("size of the adapters", size, limit, ">", "of their weights", worst.layer),
        remedies=Remedy("lower-learning-rate", text),
    )
