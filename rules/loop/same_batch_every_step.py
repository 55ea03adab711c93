from gradcheck.analysis.wording import percent
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.loop import LoopReads
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, required, rule


@rule(
    "LOOP005",
    up_to="warning",
    needs=("loop",),
    limits={
        "steps": Limit(5, "steps", "heuristic"),
        "share": Limit(0.5, "of the data", "heuristic: a part larger than this is a training split, not a batch"),
    },
    explains=("DATA004",),
)
def same_batch_every_step(m: Measurement, limits: Limits) -> Verdict:
    """Every step sees the same batch, although there is more data.

    ## What it finds
    Loops that feed one batch again and again: `next(iter(loader))` inside the loop without shuffling, a batch that was taken
    before the loop, a slice that does not move. Weighted samplers that are given a weight for each class: they draw the first samples only.

    ## Why it matters
    The model memorises these samples and learns nothing else, while the training loss falls beautifully.

    ## How it is measured
    The script is run. What the model is called with is compared over the first 32 steps, bit by bit. How many
    samples there are is known from the DataLoader that makes batches of this size, or from the tensor that the batch was
    cut out of. Of a `WeightedRandomSampler`, its weights are counted: it draws no sample beyond them.

    ## Limits and their sources
    The same input in at least `steps` 5 steps. A warning when the batch holds less than `share` 50 % of the samples that
    there are; a note when nothing else is known to be there: training on all data at once is a choice. Both are heuristic.

    ## When to ignore it
    When overfitting one batch is the point, as a test of the model.

    ## Example
    ```python
    x, y = next(iter(loader))
    for step in range(1000):
        train_step(x, y)
    ```

    ## Use instead
    ```python
    for epoch in range(10):
        for x, y in loader:
            train_step(x, y)
    ```

    ## References
    None.
    """
    loop = script(m)
    if loop.reads is not None and loop.reads.reachable is not None:
        return [_unreachable(loop.reads)]
    seen = required(loop.batches, not_measured("what the model is called with could not be compared"))
    if seen.compared < limits["steps"]:
        return not_measured(f"the batches of {seen.compared} steps are too few to compare")
    if seen.distinct > 1:
        return []
    part = seen.samples / seen.available if seen.available else 1.0
    severity: Severity = "warning" if part < limits["share"] else "info"
    limit = percent(limits["share"])
    known = f"{percent(part)} of the {seen.available} available (limit {limit})" if seen.available else "and no others are known"
    batch = f"the same {seen.samples} samples" if seen.samples else "one batch"
    message = f"{seen.compared} steps see {batch}, {known}"
    message += ": the model memorises these" if severity == "warning" else ": fine if these are all the data"
    text = "take the next batch in each step: iterate over the loader, with shuffle=True, instead of taking its first batch"
    evidence = Evidence("different batches", seen.distinct, 2, "<", f"in {seen.compared} steps")
    return [found(severity, message, location=seen.site, evidence=evidence, remedies=Remedy("next-batch", text))]


def _unreachable(reads: LoopReads) -> Finding:
    few, every = reads.reachable or 0, reads.available or 0
    return found(
        "warning",
        f"the sampler has {few} weights for {every} samples (expected {every}): it draws the first {few} only, again and again",
        location=reads.sampler_site,
        evidence=Evidence("weights of the sampler", few, every, "<", "samples"),
        remedies=Remedy("weight-samples", "give the sampler a weight for each sample: class_weights[labels]", "unsafe"),
    )
