"""DATA006: validation-leak."""

from gradcheck.analysis.wording import BY_VALUE, percent
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, required, rule


@rule(
    "DATA006",
    up_to="error",
    needs=("loop",),
    limits={
        "warning_share": Limit(0.01, "of the samples", "heuristic: what a few repeated samples of a public data set come to"),
        "error_share": Limit(0.2, "of the samples", "heuristic: the validation figures are then those of the training for a good part"),
        "fewest": Limit(4, "samples", "heuristic: fewer are chance"),
    },
)
def validation_leak(m: Measurement, limits: Limits) -> Verdict:
    """Samples of the validation data are trained on.

    ## What it finds
    A second data set that the loop only looks at, and never trains on as such, whose samples are in the training data: a split
    that overlaps, a training loader over the whole data, oversampling before the split, a split that is redrawn.

    ## Why it matters
    The validation figures are those of what was learned by heart. Models, rates and the time to stop are chosen by them.

    ## How it is measured
    While the script runs, every row of the batches that its `DataLoader`s give is hashed, all tensors of it together (512
    entries of each). Batches that a backward pass follows are trained on, the others are looked at. A data set counts as
    validation data when no batch of it is trained on. Rows that are equal by nature (synthetic and small discrete data) show
    among the training data themselves: the share of those that have a twin in one pass is taken off; a row that a `Subset` draws
    more than once is no twin of its own. What counts is what was
    trained on before the look, into the same weights: folds with a model each, and a last fit on everything, share nothing. Parts
    of one data set that samplers draw are told apart. Where another data set that is looked at shares nothing, one whose rows were
    all trained on is the training's own figure.

    ## Limits and their sources
    `warning-share` 1 % and `error-share` 20 % of the rows beyond the share of twins, and at least `fewest` 4 rows (heuristics). It is
    a warning, too, where all rows that are looked at are trained on, or about as many: it may be the training's own figure.

    Calibration: in 12 healthy scripts (random splits, halves of a tensor, a test set from elsewhere, a look at the training set
    beside validation, the training's loader looked at again, bits, small integers, oversampling within the training part,
    validation before training, two rows that repeat) nothing is reported; five that leak are, with shares of 6 to 100 %. Held
    out were five healthy and five leaking programs (digits, windows of names and of a series, tokens, folds, samplers): none
    and five are reported, once folds and samplers were told apart. What is augmented at random has no equal rows, and is not
    seen; neither are data that come without a `DataLoader`, and validation later than the first 200 steps. By
    `benchmarks/silent.py`, on six tables: of 24 healthy programs none is reported, of 12 that leak all are, once rows that a
    `Subset` draws often were told from twins.

    ## When to ignore it
    When the second data set is meant to show the training's own figures.

    ## Example
    ```python
    train_set, val_set = random_split(data, [900, 100])
    train_loader = DataLoader(data, batch_size=32, shuffle=True)
    ```

    ## Use instead
    ```python
    train_set, val_set = random_split(data, [900, 100])
    train_loader = DataLoader(train_set, batch_size=32, shuffle=True)
    ```

    ## References
    ratschlab/aestetik#12; marin-community/marin#2700; TensorAuto/OpenTau#498; Kaufman et al. 2012, Leakage in data mining.
    """
    loop = script(m)
    leak = required(loop.leak, not_applicable("no loader gives data that are only looked at, as far as the script was followed"))
    share = leak.shared / max(1, leak.rows) - leak.twins
    if share <= limits["warning_share"] or leak.shared < limits["fewest"]:
        return []
    error = share > limits["error_share"] and not leak.whole and leak.shared < leak.rows  # all of them: perhaps the training's own figure
    limit = limits["error_share" if error else "warning_share"]
    twins = f", {percent(leak.twins)} of which equal each other anyway" if leak.twins else ""
    message = (
        f"{leak.shared} of the {leak.rows} samples that are looked at here, and not trained on, are among those that are trained on{twins} "
        f"({percent(share)}, limit {percent(limit)}): what they show is no figure of new data"
    )
    evidence = Evidence("validation samples that are trained on", share, limit, ">", "of the samples")
    cure = Remedy("split-once", "split the data once, before anything else, and train on the one part only", "unsafe")
    return [found("error" if error else "warning", message, location=leak.site, evidence=evidence, remedies=cure, confirmed=BY_VALUE)]
