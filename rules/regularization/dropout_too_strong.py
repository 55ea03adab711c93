from gradcheck.analysis.convergence import data_fall, outcome, relative_decrease
from gradcheck.analysis.costs import costs_nothing, learns_slowly
from gradcheck.analysis.wording import layers_in_words, number, percent, quoted, run_in_words
from gradcheck.rules.regularization import DROPOUT, confirmation, failed, recovered
from gradcheck.types.checks import Dropout
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule
from gradcheck.types.training import Regularization, Run


@rule(
    "REG003",
    up_to="error",
    needs=("probe", "regularization"),
    limits={
        "advice": Limit(0.8, "of the values", "Srivastava et al. 2014: between 0.2 and 0.5 of the hidden units are dropped"),
        "rate": Limit(0.5, "of the values", "Srivastava et al. 2014: 0.5 in hidden layers, 0.2 on inputs; more is uncommon"),
        "count": Limit(3.0, "layers", "heuristic: the heads of AlexNet and VGG have two with a rate of 0.5"),
        "noise": Limit(0.9, "of the values", "the scaled noise of a unit is then three times its signal: sqrt(rate / (1 - rate))"),
        "slower": Limit(5.0, "times", "heuristic: five times the training for the same fall"),
        "staying": Limit(0.05, "of the loss", "measured: digits, two layers after 300 steps: of 0.5 49 %, of 0.1 21 %"),
        "learned": Limit(0.3, "of the loss", "heuristic: beyond that the training is slow but no failure"),
    },
    explains=("OPT001", "OPT007", "OPT002", "OPT003", "LOSS005", "GRAD001", "GRAD004", "ACT002", "ACT004", "NUM001", "CLIP001", "GRAPH008"),
)
def dropout_too_strong(m: Measurement, limits: Limits) -> Verdict:
    """So much is dropped that too little is left to learn from.

    ## What it finds
    Dropout, as a module or a function call, without which the same training learns while with it the probe does not. Dropout that
    evaluation mode leaves on: `F.dropout(x)`, whose `training` is True unless it is said, a dropout that is made where it is called, or
    `dropout_p` of an attention that does not ask for the mode.

    ## Why it matters
    What is kept is scaled up by 1 / (1 - rate): at a rate of 0.9 the signal's noise is three times the signal in each
    layer. Gradients then point almost anywhere.

    ## How it is measured
    The rate of each dropout that the training step applies. When the probe training fails and one of them is at least
    0.3, the loss is taken once more with dropout off, to see whether the net has learned behind the noise; if not, the
    same training is run without dropout. In evaluation mode the trained copy's loss is taken with the dropouts that are still on,
    and without them.

    ## Limits and their sources
    An error: the probe fails, with dropout off its loss has not fallen by 10 % either, without dropout the training learns, and
    the largest rate is above `rate` 0.5. With smaller rates a warning, when `count` 3 layers or more drop that much, else a
    note: such nets are slow to start, and train. When the net has learned behind the noise: a warning above `noise` 0.9,
    or when the loss falls `slower` 5 times slower than without; an error when both hold and it has fallen by less than `learned`
    30 %. When the probe learns slowly with `count` 3 layers or more that drop `rate` 0.5: a note, a warning where a paired
    training with less dropout ends clearly lower on batches that were not trained on, and nothing where it does not. On a
    model whose loss falls in training mode, advice from `advice` 0.8 on. Dropout that stays on in evaluation mode is a warning where
    it raises the loss there by more than `staying` 5 %, else advice; a call that says `training=True` is silent.

    ## When to ignore it
    When the training is much longer than the probe and is known to succeed.

    ## Example
    ```python
    x = F.dropout(F.relu(self.fc1(x)), p=0.95, training=self.training)
    ```

    ## Use instead
    ```python
    x = F.dropout(F.relu(self.fc1(x)), p=0.2, training=self.training)
    ```

    ## References
    Srivastava et al. 2014, Dropout.
    """
    r = m.regularization
    if r is None or not r.dropouts:
        return not_applicable("no dropout in the training step")
    return [*_staying(r, limits["staying"]), *_strong(m, r, limits)]


def _strong(m: Measurement, r: Regularization, limits: Limits) -> list[Finding]:
    """Of the training itself."""
    run = next((x for x in r.runs if x.lifted == (DROPOUT,) and outcome(x, r.chance) == "learns"), None)
    strongest = max(r.dropouts, key=lambda d: d.rate)
    if run is None or outcome(m.probe, m.chance) not in ("stalls", "diverges"):
        return _loud(strongest, limits["advice"]) or _many(m, r, limits)
    limit = limits["rate"]
    severity = _severity(m, r, run, strongest, limits)
    if severity is None:
        return []
    loud = [d for d in r.dropouts if d.rate >= min(limit, strongest.rate)]
    names = layers_in_words([d.layer for d in loud])
    drop = "drops" if len(loud) == 1 else "drop"
    message = f"{names} {drop} {percent(strongest.rate)} of the values: {run_in_words(m.probe)}, {run.name} {run_in_words(run)}"
    evidence = Evidence(
        "largest rate of dropout", strongest.rate, limit if strongest.rate >= limit else None, ">=", "of the values", strongest.layer
    )
    text = f"lower the rate of {names} from {number(strongest.rate)} to 0.2, and raise it again by the validation loss"
    layers = [d.layer for d in loud]
    remedies = Remedy("lower-dropout", text, "safe")
    return [
        found(
            severity, message, layers=layers, location=strongest.site, evidence=evidence, remedies=remedies, confirmed=confirmation(m, run)
        )
    ]


def _staying(r: Regularization, limit: float) -> list[Finding]:
    """Dropout that evaluation mode does not switch off: what is reported of the model is that of a random part of it."""
    if not r.staying or r.staying_loss is None or r.quiet_loss is None:
        return []
    first = r.staying[0]
    holders = list(dict.fromkeys(d.layer.partition(":")[0] for d in r.staying))
    where = f" in {layers_in_words(holders)}" if all(holders) else ""
    share = r.staying_loss / r.quiet_loss - 1 if r.quiet_loss > 0 else 0.0
    message = (
        f"evaluation mode leaves dropout of {percent(first.rate)} on{where}: the loss there is {number(r.staying_loss)}, "
        f"and {number(r.quiet_loss)} without it (limit {percent(limit)} more)"
    )
    cure = "pass dropout_p=self.dropout if self.training else 0.0" if first.attention else "pass training=self.training, or use nn.Dropout"
    return [
        found(
            "warning" if share > limit else "info",
            message,
            layers=holders if all(holders) else (),
            location=first.site,
            evidence=Evidence("rise of the loss in evaluation mode by dropout", share, limit if share > limit else None, ">"),
            remedies=Remedy("check-arguments", cure, "advice"),
        )
    ]


def _loud(strongest: Dropout, limit: float) -> list[Finding]:
    """Advice about a rate that is higher than any usual one, although the model learns with it."""
    if strongest.rate < limit:
        return []
    kept = 1 - strongest.rate
    message = (
        f"{quoted(strongest.layer)} drops {percent(strongest.rate)} of the values (limit {percent(limit)}): what is left is {percent(kept)}"
    )
    evidence = Evidence("largest rate of dropout", strongest.rate, limit, ">=", "of the values", strongest.layer)
    remedies = Remedy("lower-dropout", f"lower the rate of {quoted(strongest.layer)} to between 0.1 and 0.5", "safe")
    return [found("info", message, layers=(strongest.layer,), location=strongest.site, evidence=evidence, remedies=remedies)]


def _many(m: Measurement, r: Regularization, limits: Limits) -> list[Finding]:
    """Advice about dropouts that together leave little of a signal, in a training that is slow and was not seen to be none the worse."""
    loud = [d for d in r.dropouts if d.rate >= limits["rate"] and not d.attention]
    if len(loud) < limits["count"] or not learns_slowly(m) or costs_nothing(m, "REG003"):
        return []
    names, rate = layers_in_words([d.layer for d in loud]), max(d.rate for d in loud)
    message = (
        f"{len(loud)} layers ({names}) drop {percent(rate)} of the values (limit {number(limits['count'])} layers), "
        f"and the training is slow: {run_in_words(m.probe)}"
    )
    evidence = Evidence("layers that drop as much", float(len(loud)), limits["count"], ">=", "layers")
    remedies = Remedy("lower-dropout", f"lower the rate of {names} from {number(rate)} to 0.2", "safe")
    layers = [d.layer for d in loud]
    return [found("info", message, layers=layers, location=loud[0].site, evidence=evidence, remedies=remedies)]


def _severity(m: Measurement, r: Regularization, run: Run, strongest: Dropout, limits: Limits) -> Severity | None:
    """Severity for dropout without which the same training learns."""
    if failed(m, r):
        if recovered(r, DROPOUT) is None:
            return None
        many = sum(d.rate >= limits["rate"] for d in r.dropouts if not d.attention) >= limits["count"]
        return "error" if strongest.rate > limits["rate"] else "warning" if many else "info"
    if strongest.rate <= limits["rate"] or not m.probe.losses:
        return None
    mine, other = data_fall(r) / len(m.probe.losses), relative_decrease(run, r.chance) / len(run.losses)
    slow, noisy = other > limits["slower"] * mine, strongest.rate >= limits["noise"]
    return "error" if slow and noisy and data_fall(r) < limits["learned"] else "warning" if slow or noisy else None
