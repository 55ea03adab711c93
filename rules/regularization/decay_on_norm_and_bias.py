from gradcheck.analysis.update_sizes import decay_matters
from gradcheck.analysis.wording import layers_in_words, number
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "REG002",
    up_to="info",
    needs=("optimizer",),
    limits={"least": Limit(0.0, "weight decay", "convention of timm and nanoGPT: none on parameters with one axis")},
)
def decay_on_norm_and_bias(m: Measurement, limits: Limits) -> Verdict:
    """Weight decay also pulls on biases and on the gains of normalization layers.

    ## What it finds
    Parameters with one axis, such as biases and gains, in a parameter group with weight decay.

    ## Why it matters
    Decay limits how strongly inputs are weighted. Biases and gains weight no inputs: pulling gains to zero weakens the layer,
    and pulling biases to zero only costs fit.

    ## How it is measured
    The settings of the optimizer's parameter groups and the shapes of the parameters in them.

    ## Limits and their sources
    Decay above `least` 0 on any of them. A convention (timm, nanoGPT), not a measured limit. Not a decay that takes less than a
    hundredth of a parameter in 100 000 steps, or of the gradient to which an adaptive optimizer adds it.

    ## When to ignore it
    When the decay is small, so is the effect.

    ## Example
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    ```

    ## Use instead
    ```python
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])
    ```

    ## References
    He et al. 2019, Bag of Tricks for Image Classification.
    """
    if not m.optimizer.given:
        return not_applicable("the optimizer was assumed")
    decayed = [p for p in m.parameters if p.trainable and p.groups > 0 and p.weight_decay > limits["least"]]
    if not decayed:
        return not_applicable("no weight decay")
    vectors = [p for p in decayed if len(p.shape) <= 1]
    if not any(decay_matters(m, p) for p in vectors):
        return []
    strongest = max(p.weight_decay for p in vectors)
    message = (
        f"weight decay {number(strongest)} also acts on {len(vectors)} biases and gains ({layers_in_words([p.name for p in vectors])})"
    )
    text = f"put the {len(vectors)} parameters with fewer than two axes into a group with weight_decay=0"
    evidence = Evidence("largest weight decay on a bias or gain", strongest, limits["least"], ">")
    layers = tuple(dict.fromkeys(p.layer for p in vectors))
    remedy = Remedy("weight-decay-groups", text, "safe")
    return [found("info", message, layers=layers, location=m.optimizer.site, evidence=evidence, remedies=remedy)]
