from gradcheck.analysis.wording import number, optimizer_in_words, run_in_words
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

USUAL = 0.9


@rule(
    "OPT008",
    up_to="warning",
    needs=("probe",),
    explains=("GRAPH008", "OPT001", "OPT007", "LOSS005", "ACT002", "GRAD004", "NUM001", "CLIP001"),
    limits={"steps": Limit(100, "steps", "digits: 0.99 and more fits in 300 steps and diverges by 2000; 0.95 does not")},
)
def momentum_too_long(m: Measurement, limits: Limits) -> Verdict:
    """Momentum remembers so many steps that the weights are carried past where they should stop.

    ## What it finds
    SGD and its kin with a momentum of 0.99 or more.

    ## Why it matters
    A step grows until it is rate / (1 - momentum) times the gradient, which takes 1 / (1 - momentum) steps. With 0.999 a
    training of a few hundred steps looks fine, but ends up running at a thousand times the rate in the code: the loss
    swings, and rises far above its start.

    ## How it is measured
    1 / (1 - momentum). What it costs is measured: the training for ten times as many steps as the probe, as it is and with a
    momentum of 0.9, on the same batches.

    ## Limits and their sources
    `steps` 100 and more are a note, and a warning where the paired training shows a cost. On scikit-learn's digits, nets of
    three and five layers fit within 300 steps with 0.99 to 0.999, and most had diverged after 2000.

    ## When to ignore it
    When the rate is as low as the momentum is high, or falls on a schedule that the scan did not see.

    ## Example
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.999)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    ```

    ## References
    Sutskever et al. 2013, On the importance of initialization and momentum in deep learning; Goh 2017, Why Momentum Really Works.
    """
    o = m.optimizer
    if o.adaptive or not o.momentum or not o.given:
        return not_applicable("the optimizer has no momentum, rescales its steps, or was assumed")
    if not m.probe.losses:
        return not_measured("the probe training took no step")
    steps = round(1 / max(1 - o.momentum, 1e-6), 6)
    if steps < limits["steps"]:
        return []
    message = (
        f"momentum {number(o.momentum)} of {optimizer_in_words(m)} remembers {number(steps)} steps (limit {number(limits['steps'])}), "
        f"in which a step grows to that many times the rate: {run_in_words(m.probe)}"
    )
    evidence = Evidence("steps that the momentum remembers", steps, limits["steps"], ">=", "steps")
    remedies = Remedy("lower-momentum", f"set momentum to {USUAL}", "safe")
    return [found("info", message, location=o.site, evidence=evidence, remedies=remedies)]
