import math

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import number
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule

FULL = 32  # batches: as many as a scan collects unless told otherwise; there may be more of them


@rule(
    "REG004",
    up_to="warning",
    needs=("probe", "data", "validation"),
    limits={
        "standard_errors": Limit(3.0, "standard errors", "digits: gaps of 0.2 to 2 errors with 1400 samples, 3.5 to 11 with 60 to 200"),
        "gap": Limit(0.1, "of the loss at the start", "digits: 0.02 with 1400 samples, 0.07 with 200, 0.3 with 60"),
        "ratio": Limit(1.5, "times the training loss", "heuristic"),
        "rise": Limit(0.1, "of its lowest value", "heuristic: early stopping would have saved a tenth of the validation loss"),
    },
)
def overfitting(m: Measurement, limits: Limits) -> Verdict:
    """The model memorises its training samples: the validation loss rises while the training loss falls.

    ## What it finds
    A gap between validation and training loss that is larger than chance allows, with a validation loss that is rising.

    ## Why it matters
    Beyond that point training makes the model worse on everything that it has not seen.

    ## How it is measured
    After the probe training, the loss of the trained copy in evaluation mode on training and validation batches, with the
    standard error of the difference over parts of them. Where there is a gap, the same training is run again and looked at
    ten times on the way.

    ## Limits and their sources
    A gap above `standard-errors` 3 standard errors, and above `gap` 10 % of the loss at the start or with a validation loss above
    `ratio` 1.5 times the training loss. It is a warning when the validation loss also ends above where it started, or by
    `rise` 10 % above its lowest value; else a note. Measured on scikit-learn's digits. When there may be more training batches than the
    scan collected, it is a note: a probe that repeats a part of the data memorises that part.

    ## When to ignore it
    When the validation data come from elsewhere: then the difference between the data is measured. When there is
    more training data than the scan was given.

    ## Example
    ```python
    for epoch in range(1000):
        train(model, optimizer, train_loader)
    ```

    ## Use instead
    ```python
    best = float("inf")
    for epoch in range(1000):
        train(model, optimizer, train_loader)
        loss = evaluate(model, val_loader)
        if loss > 1.1 * best:
            break
        best = min(best, loss)
    ```

    ## References
    Prechelt 1998, Early Stopping, But When?; Zhang et al. 2017, Understanding deep learning requires rethinking generalization.
    """
    v = required(m.validation, not_applicable("no validation data; give --val-data"))
    if m.probe.ended == "raised" or not m.probe.losses or not (math.isfinite(v.loss) and math.isfinite(v.train_loss)):
        return not_measured("the probe training broke off")
    gap, start = v.loss - v.train_loss, abs(m.probe.losses[0])
    wide = gap > limits["gap"] * start or v.loss > limits["ratio"] * v.train_loss > 0
    if not (gap > limits["standard_errors"] * v.standard_error and wide and gap > 0):
        return []
    if training_outcome(m) != "learns":
        return []
    lowest = v.lowest if v.lowest is not None else v.loss
    rose = v.loss - lowest > limits["rise"] * abs(lowest) and v.loss - lowest > v.standard_error
    above_start = v.start_loss is not None and v.loss > v.start_loss and v.loss > start
    partial = m.data.batches >= FULL
    severity: Severity = "warning" if (rose or above_start) and not partial and m.data.given else "info"
    visits = len(m.probe.losses) / max(1, m.data.batches)
    message = (
        f"after {len(m.probe.losses)} steps ({number(visits)} rounds of {m.data.batches} batches) the validation loss is {number(v.loss)}, "
        f"the training loss {number(v.train_loss)}"
    )
    message += f", and it was {number(lowest)} after {v.lowest_step} steps" if rose else ""
    message += ": the model memorises samples" if severity == "warning" else ": part of what it learns holds for these samples only"
    stop = f"stop after about {v.lowest_step} steps, or " if rose else ""
    text = f"{stop}regularise: `gradcheck trial` compares L1, L2, Elastic Net, dropout, augmentation and early stopping on your data"
    evidence = [
        Evidence("validation minus training loss", gap / (v.standard_error or 1e-12), limits["standard_errors"], ">", "standard errors"),
        Evidence("rise of the validation loss above its lowest value", v.loss - lowest, limits["rise"] * abs(lowest), ">"),
    ]
    return [found(severity, message, evidence=evidence, remedies=Remedy("early-stopping", text, "advice"))]
