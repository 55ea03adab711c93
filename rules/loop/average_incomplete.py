from gradcheck.analysis.wording import layers_in_words, number
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import LoopAverage
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule
from gradcheck.types.structure import Statistics


@rule(
    "LOOP012",
    up_to="warning",
    needs=("loop",),
    wants=("normalization",),
    limits={
        "cost": Limit(
            1.5, "times", "measured: digits after 300 steps: a CNN with three batch normalizations 5.6, a perceptron with two 4.1"
        )
    },
)
def average_incomplete(m: Measurement, limits: Limits) -> Verdict:
    """A model that is to track another one does not: its buffers stay, or all of it, or it receives gradients.

    ## What it finds
    Teachers, target networks and averages whose weights the loop moves towards those of the trained model, while the running
    statistics of their batch normalizations stay what they were at the start; such models that the loss sends gradient to; and a
    target network that never moves while that of another model does, as a target actor beside a target critic.

    ## Why it matters
    In evaluation mode, batch normalization uses its running statistics. With the initial ones, a teacher teaches noise, and an
    average is worse than what it averages. Gradients of a teacher are computed for nothing, and change it if an optimizer holds its
    parameters. A target network that stays gives the targets of an untrained one.

    ## How it is measured
    The script is run. A model that no optimizer holds, with the structure of one that is trained, follows it when the loop's
    changes to its largest weight between two steps point towards the other one's weight (cosine above 0.999). Its buffers are
    compared with what they were at the first step, and its calls in evaluation mode are noted. What such buffers cost is measured
    on the copy that the probe trained: its loss in evaluation mode with the statistics from before training, and with its own.
    A model stays that began as a copy, is called, and is the same before every recorded step (8 or more).

    ## Limits and their sources
    A buffer that stayed as it was while the trained model's changed, in a model that was called in evaluation mode, counts.
    Gradients that reach such a model are advice. An average that was not called yet is a warning where such buffers raise the
    loss `cost` 1.5 times; advice where they do not, or where the program names what takes statistics later (`update_bn`).
    Nothing is said of one that is called in training mode, nor of one that stays while none follows: a reference may. One that stays
    beside one that follows is advice: it may be copied every thousandth step.

    ## When to ignore it
    When the statistics should stay fixed, like those of a trained backbone.

    ## Example
    ```python
    for t, s in zip(teacher.parameters(), student.parameters()):
        t.mul_(0.99).add_(s, alpha=0.01)
    ```

    ## Use instead
    ```python
    for t, s in zip(teacher.parameters(), student.parameters()):
        t.mul_(0.99).add_(s, alpha=0.01)
    for t, s in zip(teacher.buffers(), student.buffers()):
        t.copy_(s)
    ```

    ## References
    Tarvainen and Valpola 2017, Mean teachers are better role models; PyTorch documentation: `torch.optim.swa_utils.AveragedModel`.
    """
    averages = required(script(m).averages, not_measured("whether a model follows another one was not looked at"))
    if not averages:
        return not_applicable("no model follows another one's weights")
    return [f for a in averages if (f := _finding(a, m, limits["cost"])) is not None]


def _finding(a: LoopAverage, m: Measurement, limit: float) -> Finding | None:
    if a.beside is not None:
        return _left(a, a.beside)
    if a.stale and (a.evaluated or not (a.called or a.graded)):
        return _stale(a, m.normalization, limit)
    return _graded(a) if a.graded else None


def _names(a: LoopAverage) -> tuple[str, str]:
    return a.name or "a model", a.leader or "the trained model"


def _stale(a: LoopAverage, s: Statistics | None, limit: float) -> Finding:
    mine, leader = _names(a)
    cost = s.initial / s.evaluated if s is not None and s.initial is not None and s.evaluated > 0 else 0.0
    message = (
        f"{mine} follows the weights of {leader}, not its buffers: {len(a.stale)} of them (limit 0), {layers_in_words(a.stale)}, "
        f"stay what they were at the start, and evaluation mode uses them{'' if a.evaluated else ': it was not called so far'}"
    )
    text = f"copy the buffers of {leader} into {mine} as well, after each update of its weights"
    if not a.evaluated:
        text += ", or take them before it is used (torch.optim.swa_utils.update_bn)"
    evidence = [Evidence("buffers that do not follow", len(a.stale), 0, ">")]
    if s is not None and s.initial is not None and cost:
        message += (
            f". Trained weights have the loss {number(s.initial)} with the statistics of the start, {number(s.evaluated)} with their own"
        )
        evidence.append(Evidence("loss in evaluation mode, with the statistics of the start over that with its own", cost, limit, ">"))
    return found(
        "warning" if a.evaluated or (cost > limit and not a.taken) else "info",
        message,
        location=a.site,
        evidence=evidence,
        remedies=Remedy("follow-buffers", text),
    )


def _left(a: LoopAverage, beside: tuple[str, str]) -> Finding:
    mine, leader = _names(a)
    return found(
        "info",
        f"{mine} is a copy of {leader} and stays as it was through {a.stood} steps (limit 0), while {beside[0] or 'another copy'} follows "
        f"{beside[1] or 'its model'}: it gives what the untrained {leader} gave",
        location=a.site,
        evidence=Evidence("steps in which it stayed", a.stood, 0, ">", "steps"),
        remedies=Remedy("check-arguments", f"move {mine} towards {leader} where the other copy is moved", "advice"),
    )


def _graded(a: LoopAverage) -> Finding:
    mine, leader = _names(a)
    message = (
        f"{mine} follows the weights of {leader}, and the loss sends gradient to {a.graded} of its parameters (limit 0): nothing uses it"
    )
    return found(
        "info",
        message,
        location=a.site,
        evidence=Evidence("parameters with a gradient that nothing uses", a.graded, 0, ">"),
        remedies=Remedy("freeze-average", f"call {mine} under torch.no_grad(), or set requires_grad_(False) on it"),
    )
