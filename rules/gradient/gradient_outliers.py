from statistics import median

from gradcheck.analysis.wording import number
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


@rule(
    "GRAD005",
    up_to="info",
    needs=("samples", "probe"),
    limits={
        "ratio": Limit(10.0, "times the median", "heuristic; about 60 small healthy models reach 5"),
        "samples": Limit(8, "samples", "heuristic: the median of fewer is no reference"),
    },
)
def gradient_outliers(m: Measurement, limits: Limits) -> Verdict:
    """Single samples dominate the gradient of their batch.

    ## What it finds
    Batches in which one sample's gradient is many times larger than that of a typical sample.

    ## Why it matters
    Such a sample decides where the step goes. It is often mislabelled, not scaled like the others, or far longer.

    ## How it is measured
    Before training, the 2-norm of the gradient of single samples of the first batch, 8 of them: the three whose inputs
    or targets are largest, and the first ones of the others. In evaluation mode. Not measured when the batch
    cannot be cut into samples, or its loss is not the mean (or sum) of theirs.

    ## Limits and their sources
    `ratio` 10: advice when the largest norm is more than this many times the median over at least `samples` 8.
    Heuristics, hence advice only; healthy small models reach 5.

    ## When to ignore it
    When the samples are known to differ this much.

    ## Example
    ```python
    loss = nn.functional.mse_loss(model(x), y)  # one target of 1e4 among targets of 1
    ```

    ## Use instead
    ```python
    loss = nn.functional.huber_loss(model(x), y)
    ```

    ## References
    Katharopoulos and Fleuret 2018, Not All Samples Are Created Equal.
    """
    if not m.data.given:
        return not_applicable("the data are synthetic")
    if m.samples is None:
        return not_measured("the probe training left no finite weights, or the batch has fewer than 4 samples")
    norms = m.samples.norms
    if len(norms) < limits["samples"]:
        return not_measured(f"only {len(norms)} samples were looked at")
    typical, largest = median(norms), max(norms)
    if typical <= 0 or largest <= limits["ratio"] * typical:
        return []
    index = m.samples.largest
    message = (
        f"gradient of sample {index} of the first batch is {number(largest / typical)} times that of a typical one "
        f"(limit {number(limits['ratio'])}): it decides where the step goes"
    )
    evidence = Evidence("largest over median gradient norm of a sample", largest / typical, limits["ratio"], ">", "times")
    cures = (
        Remedy("inspect-data", f"look at sample {index} of the first batch: its label, its scale, its length", "advice"),
        Remedy("clip-gradient-norm", "clip the gradient's norm, or use a loss that grows linearly (huber_loss)", "advice"),
    )
    return [found("info", message, evidence=evidence, remedies=cures)]
