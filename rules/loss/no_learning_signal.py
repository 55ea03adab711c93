from gradcheck.analysis.wording import BY_VALUE, number
from gradcheck.types.checks import IdleTerm
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.loop import SilentTerm
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule


@rule(
    "LOSS008",
    up_to="error",
    needs=("optimizer",),
    wants=("terms",),
    limits={"passes": Limit(16, "passes", "heuristic: in a healthy GRPO some groups agree, never all of so many steps")},
    explains=("GRAD004", "GRAD001", "LOSS005", "OPT001", "OPT007", "OPT002", "OPT003", "GRAPH005", "LOSS009"),
)
def no_learning_signal(m: Measurement, limits: Limits) -> Verdict:
    """There is nothing to learn from: equal rewards in a group, equal sides of a preference, or a target of new noise.

    ## What it finds
    Policy gradients whose advantages vanish because the rewards that they are differences of are equal (a reward that
    looks at the prompt, which all answers of a group share; one that is constant), and preference or ranking losses whose
    two sides are the same. Denoisers whose target is drawn again for the loss, in place of the noise that was added to their input.

    ## Why it matters
    The gradient is exactly zero but for regularization and rounding, and Adam turns even that into full steps. The level
    of such a loss says nothing, so nothing shows.

    ## How it is measured
    While the script runs, every difference that the loop takes without gradient is looked at; one of numbers that are all equal
    is followed, through scales and moves, up to the loss that it is a factor of. It counts when the factor of every recorded
    pass is one. Normal noise that a loss function of torch takes as its target counts when nothing else is made of it, while
    noise of the same shape was mixed into something, in every recorded pass. In the loss itself, a difference of two outputs of the
    model counts when both are equal before training and after the probe, and the whole gradient is less than a thousandth of that
    through one of them.

    ## Limits and their sources
    `passes` 16: recorded passes, in all of which the numbers are equal; with fewer it is a warning (heuristic). It is a
    warning, too, when they were one and the same number in all passes: a reward that is seldom given looks so at first.

    ## When to ignore it
    When rewards are sparse and none has been found yet.

    ## Example
    ```python
    rewards = torch.tensor([score(prompt) for prompt, answer in samples])
    advantages = rewards - rewards.mean()
    ```

    ## Use instead
    ```python
    rewards = torch.tensor([score(prompt, answer) for prompt, answer in samples])
    advantages = rewards - rewards.mean()
    ```

    ## References
    Shao et al. 2024, DeepSeekMath (GRPO); Rafailov et al. 2023, Direct Preference Optimization.
    """
    told = m.loop.silent or () if m.loop is not None else ()
    silent = [t for t in told if t.kind == "equals"]
    drawn = [_drawn(t, limits["passes"]) for t in told if t.kind == "drawn"]
    equal = [t for t in m.idle_terms if t.kind == "equals"]
    if not silent and not drawn and any(n.what == "terms" for n in m.not_measured):
        return not_measured("the loss could not be taken apart")
    return [*drawn, *(_advantages(t, limits["passes"]) for t in silent[:1]), *(_sides(t) for t in equal[:1])]


def _advantages(t: SilentTerm, passes: float) -> Finding:
    varied = t.high > t.low
    severity: Severity = "error" if varied and t.passes >= passes else "warning"
    which = f"between {number(t.low)} and {number(t.high)} over all passes, but equal within each" if varied else f"always {number(t.low)}"
    message = (
        f"there is nothing to learn from: the numbers that are subtracted here are {which}, so that the factor of the loss is 0 in "
        f"{t.passes} of {t.passes} recorded passes (limit {passes:g}): no gradient shows what is better"
    )
    cure = Remedy(
        "check-reward", "make the reward, or the score, depend on what the model did, so that it differs within a group", "unsafe"
    )
    return found(
        severity,
        message,
        location=t.site,
        evidence=Evidence("passes whose factor of the loss is 0", t.passes, passes if t.passes >= passes else None, ">="),
        remedies=cure,
        confirmed=BY_VALUE,
    )


def _drawn(t: SilentTerm, passes: float) -> Finding:
    severity: Severity = "error" if t.passes >= passes else "warning"
    message = (
        f"there is nothing to learn from: the target is new noise ({t.operation}) in {t.passes} of {t.passes} recorded passes (limit "
        f"{passes:g}), not the noise that was mixed in: the best prediction is 0"
    )
    return found(
        severity,
        message,
        location=t.site,
        evidence=Evidence("passes whose target is new noise", t.passes, passes if t.passes >= passes else None, ">="),
        remedies=Remedy("check-target", "draw the noise once, add it to the input, and predict the same tensor", "unsafe"),
        confirmed=BY_VALUE,
    )


def _sides(t: IdleTerm) -> Finding:
    message = (
        f"there is nothing to learn from: both sides of a difference that the loss is made of are equal ({number(t.value)} on average), "
        "before training and after the probe (limit on their difference: 0), and their gradients cancel"
    )
    cure = Remedy("check-pairs", "check the data: the two sides that are compared are the same", "unsafe")
    evidence = Evidence("difference of the two sides", 0.0, 0.0, "<=")
    return found("error", message, location=t.site, evidence=evidence, remedies=cure, confirmed=BY_VALUE)
