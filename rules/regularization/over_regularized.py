from gradcheck.analysis.convergence import relative_decrease
from gradcheck.analysis.wording import run_in_words
from gradcheck.rules.regularization import DECAY, DROPOUT, PENALTY, failed, recovered
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, required, rule


@rule(
    "REG005",
    up_to="warning",
    needs=("probe", "regularization"),
    limits={"fall": Limit(0.2, "of the loss", "heuristic: twice the fall that counts as learning")},
)
def over_regularized(m: Measurement, limits: Limits) -> Verdict:
    """All regularization together keeps the model from learning, though no single one does.

    ## What it finds
    Trainings that get nowhere with dropout, weight decay, penalties and smoothed labels, and learn without them.

    ## Why it matters
    Regularization guards against overfitting. A model that does not fit anything yet has no use for it.

    ## How it is measured
    When the probe training fails although its dropout, decay, penalty or label smoothing is strong, the same training is
    run without each of them, and, when that does not help, without all of them.

    ## Limits and their sources
    The probe fails, also with dropout off and labels not smoothed; no single one is the reason (then that one is reported); without
    all of them the loss falls by at least `fall` 20 %. Heuristic, twice what counts as learning.

    ## When to ignore it
    When the training is much longer than the probe and is known to succeed.

    ## Example
    ```python
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.95)
    ```

    ## Use instead
    ```python
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    ```

    ## References
    Goodfellow et al. 2016, Deep Learning, chapter 11: fit the training data first.
    """
    r = required(m.regularization, not_applicable("no dropout, weight decay, penalty or label smoothing"))
    if not failed(m, r) or any(recovered(r, kind) for kind in (DROPOUT, DECAY, PENALTY)):
        return []
    learned = [x for x in r.runs if recovered(r, *x.lifted) is x and relative_decrease(x, r.chance) >= limits["fall"]]
    if not learned or not m.optimizer.given:
        return []
    run = learned[-1]
    kinds = " and ".join(run.lifted)
    message = f"{kinds} together keep the model from learning: {run_in_words(m.probe)}, {run.name} {run_in_words(run)}"
    fell = relative_decrease(run, r.chance)
    evidence = Evidence("fall of the loss without them", fell, limits["fall"], ">", "of the loss")
    text = f"take {kinds} out until the training loss falls, then put one back at a time, judged by the validation loss"
    remedies = Remedy("less-regularization", text, "safe")
    return [found("warning", message, location=m.optimizer.site, evidence=evidence, remedies=remedies)]
