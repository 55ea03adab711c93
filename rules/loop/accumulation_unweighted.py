"""LOOP011: accumulation-unweighted."""

from gradcheck.analysis.wording import number
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule


@rule(
    "LOOP011",
    up_to="warning",
    needs=("loop",),
    limits={
        "ratio": Limit(2.0, "times", "heuristic: an element counts twice what another one does"),
        "difference": Limit(
            0.2, "of the gradient", "measured: 0.12 where weighing changes nothing, 0.40 and up where it does; see the page"
        ),
    },
)
def accumulation_unweighted(m: Measurement, limits: Limits) -> Verdict:
    """Micro-batches with different numbers of supervised elements weigh alike under gradient accumulation.

    ## What it finds
    Steps that add up several backward passes, each of a loss that is the mean over its own tokens (or samples), where the passes
    hold different numbers of them: the gradient is a mean of means.

    ## Why it matters
    A token in a short micro-batch weighs many times as much as one in a long micro-batch. Training favours what occurs in short
    sequences, and the loss is not that of the same data in one batch: it depends on how they are split.

    ## How it is measured
    While the script runs, or in the measured steps of a watched run, the weight of one supervised element in each pass is read
    off the graph of the loss: factors, mean or sum, targets that are not ignored, masks. Entries of the gradient are kept after
    each pass; their differences give the gradient in which all elements weigh alike. Where several processes average their
    gradients, a watched run does not show it.

    ## Limits and their sources
    In the median step an element weighs `ratio` 2 times another one or more, and the gradient lies at least `difference` 0.2 of
    its size from that of elements that weigh alike. Measured on next-token models, four sequences a step, 600 steps, held-out
    nats a token with means and with equal weights: lengths 10 to 19 and 20 to 39 (ratio 1.4 and 1.6, difference 0.12 and 0.10)
    1.269 and 1.253 either way; lengths 2 to 59 (5.6, 0.40) 1.265 and 1.261; where short sequences also follow other rules (3 to
    8, 0.42 to 0.58) 1.412 and 1.367, 0.329 and 0.223, 1.607 and 1.576, 1.346 and 1.298. Eight loops that weigh or fill their
    micro-batches alike are at 1.0 to 1.2. Held out: tags, masked tokens, pixels and entries that are masked by hand are
    reported (ratio 3.9 to 20), five others (images, sums over the count, weighted means, Dice, two losses) are not. By
    `benchmarks/silent.py`, on sequences, pixels and sets: of 12 healthy loops none is reported, of 6 unweighted ones all are.

    ## When to ignore it
    When each sequence, however long, is to count as one.

    ## Example
    ```python
    for i, (x, y) in enumerate(loader, 1):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)
        (loss / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    ```

    ## Use instead
    ```python
    for batches in groups_of(loader, 4):
        count = sum((y != -100).sum() for x, y in batches)
        for x, y in batches:
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
            (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    ```

    ## References
    huggingface/transformers#34191 and #35203; karpathy/nanochat#59; ml-explore/mlx-lm#1413; meta-pytorch/torchtune#1875.
    """
    loop = script(m)
    accumulated = required(loop.accumulated, not_measured("the backward passes of a step were not told apart"))
    seen = loop.weighting
    if accumulated < 2 and seen is None:
        return not_applicable("each step follows one backward pass")
    if seen is None or seen.difference is None:
        return not_measured("how much an element weighs cannot be told from the operations of the losses")
    if seen.ratio < limits["ratio"] or seen.difference < limits["difference"]:
        return []
    message = (
        f"each step adds up {seen.passes or accumulated} means over {seen.fewest} to {seen.most} supervised elements: one of them "
        f"weighs {number(seen.ratio)} times what another one does (limit {number(limits['ratio'])}), and the gradient is "
        f"{number(seen.difference)} of its size away from that of one large batch (limit {number(limits['difference'])})"
    )
    evidence = [
        Evidence("weight of an element", seen.ratio, limits["ratio"], ">=", "times another one's"),
        Evidence("gradient", seen.difference, limits["difference"], ">=", "of its size from that of one batch"),
    ]
    cure = Remedy("weigh-micro-batches", "sum the loss of each micro-batch, and divide by the number of elements of all of them")
    return [found("warning", message, location=seen.site or loop.backward_site, evidence=evidence, remedies=cure)]
