from statistics import median

from gradcheck.analysis.curves import lowest, noise
from gradcheck.analysis.wording import number, percent
from gradcheck.rules.log import at_step, finished, look
from gradcheck.types.finding import Evidence
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule


@rule(
    "LOG006",
    up_to="warning",
    needs=("log",),
    limits={
        "points": Limit(5, "evaluations", "heuristic: fewer show no course"),
        "after": Limit(3, "evaluations", "heuristic: one or two above the lowest are noise"),
        "rise": Limit(0.1, "of the lowest", "heuristic: early stopping with a patience of a few evaluations would have stopped"),
        "noise": Limit(3, "standard deviations", "heuristic: of the evaluations around their own course"),
    },
)
def log_evaluation_departs(m: Measurement, limits: Limits) -> Verdict:
    """The logged evaluation loss rises while the training loss falls.

    ## What it finds
    Runs whose loss on held-out data reached its lowest value long before the end and rose from there, while that on the training data fell.

    ## Why it matters
    From there on the model learns the training data by heart: the steps are worse than useless, and the last weights are not the best.

    ## How it is measured
    The lowest evaluation against the last ones; the level of the training loss before and after it.

    ## Limits and their sources
    `rise` (10 % above the lowest level, by the median of the last `after` = 3 evaluations), beyond `noise` (3 standard deviations of
    the evaluations around their course), with `points` (5) evaluations at least. Of many evaluations a level is the median of a tenth.

    ## When to ignore it
    When what counts is another number, such as the accuracy, which may go on to rise while the loss does: over-confident answers cost much.

    ## Example
    ```python
    trainer = Trainer(max_epochs=100)
    ```

    ## Use instead
    ```python
    trainer = Trainer(max_epochs=100, callbacks=[EarlyStopping("val_loss", patience=3), ModelCheckpoint(monitor="val_loss")])
    ```

    ## References
    Prechelt 1998, Early stopping - but when?; Guo et al. 2017, On calibration of modern neural networks.
    """
    log, none = finished(m), not_applicable("the log has no loss of training and of evaluation, both")
    curve, training = required(log.evaluation, none).finite, required(log.loss, none).finite
    count = round(limits["after"])
    if len(curve.values) < limits["points"]:
        return not_measured(f"{len(curve.values)} evaluations are too few")
    step, best = lowest(curve)
    if sum(s > step for s in curve.steps) < count:
        return []
    end = median(curve.values[-count:])
    before = [v for s, v in zip(training.steps, training.values, strict=True) if s <= step]
    after = [v for s, v in zip(training.steps, training.values, strict=True) if s > step]
    if not before or not after or median(after[-max(1, len(after) // 4) :]) >= median(before[-max(1, len(before) // 4) :]):
        return []
    rise = end - best
    if not rise > limits["rise"] * abs(best) or not rise > limits["noise"] * noise(curve.values):
        return []
    message = (
        f"the evaluation loss ({curve.name}) is lowest at {at_step(step)}, {number(best)}, and rises to {number(end)} by the end "
        f"({percent(rise / abs(best))} more, limit {percent(limits['rise'])}), while the training loss falls on: the weights of "
        f"{at_step(step)} are better than the last ones"
    )
    evidence = Evidence("rise of the evaluation loss", rise / abs(best) if best else 0.0, limits["rise"], ">", "of the lowest")
    remedies = look(m, f"keep the checkpoint of {at_step(step)}, and try weight decay, dropout or more data")
    return [found("warning", message, evidence=evidence, remedies=remedies)]
