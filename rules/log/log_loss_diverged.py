from statistics import median

from gradcheck.analysis.convergence import levelled
from gradcheck.analysis.curves import changed_at_once, ends, level_error, lowest, noise, spikes
from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.rules.log import NO_LOSS, REWARDS, at_step, led_by_rewards, look, recorded
from gradcheck.types.finding import Evidence
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule
from gradcheck.types.training import LogColumn, LogFacts

PARTS = 20  # of a curve, whose medians tell whether it comes down again
JUMP = (10, 3)  # score and reach of a jump: as log-loss-spikes


@rule(
    "LOG002",
    up_to="error",
    needs=("log",),
    limits={
        "points": Limit(20, "points", "heuristic: a tenth of them is two at least"),
        "steps": Limit(
            200, "steps of a watched run", "measured: healthy SGD falls to 0.61 by step 25, is at 1.9 at step 29, and ends at 0.003"
        ),
        "learned": Limit(0.2, "of the first level", "heuristic: a run that has learned so much, and loses all of it, has diverged"),
        "least": Limit(0.05, "of the first level", "heuristic: a watched run that has learned less may have nothing to lose yet"),
        "blown": Limit(
            100, "times the first level", "measured: SGD at twice the critical rate ends at 7e16 times it; healthy runs below it"
        ),
        "absurd": Limit(
            1e4,
            "times the first level",
            "measured: SGD at 600 times its rate falls back to 2e21 times it; data that become harder: 46 times at most",
        ),
        "lost": Limit(0.5, "of what was learned", "heuristic: half of the way back"),
        "again": Limit(
            0.33, "of the rise", "measured: data that become harder: 0.5 to 0.9 in four runs, a fifth has 4 jumps; divergence: 0.01 to 0.18"
        ),
        "stages": Limit(2, "lasting jumps", "measured: curricula of five stages: 2 to 6; divergence: 0 or 1"),
        "noise": Limit(
            7,
            "standard errors",
            "measured: of a level; 40 healthy runs (cosine, restarts, batches of one, rewards) come to 5.4, two players to 6.2; five of "
            "SGD that diverges slowly to 8.1 and more. For an error, standard deviations of single values",
        ),
    },
    explains=("LOG003", "LOG004", "LOG007"),
)
def log_loss_diverged(m: Measurement, limits: Limits) -> Verdict:
    """The logged loss falls, and then rises for good.

    ## What it finds
    Runs whose loss ends well above the lowest level that it had, or far above the first.

    ## Why it matters
    A training loss that rises and does not come back means that the steps are too large for where the weights are by now, or that
    the data changed. The last checkpoint is worse than an earlier one.

    ## How it is measured
    Levels are medians over a tenth of the curve: the first, the lowest, and the last one. Noise is estimated from the
    differences of neighbouring values.

    ## Limits and their sources
    `learned` (20 %): a loss that had fallen by as much, and ends above its first level, is an error, as is one that ends
    `blown` (100) times as high as it began. `lost` (50 %): a warning when it ends so far up the way that it had come down. A
    warning has to be beyond `noise` (7 standard errors of a level); an error, and anything that is said of a watched run,
    beyond as many standard deviations of single values. At least `points` (20) values, or `steps` (200) of a watched run. It is a
    warning, too, where the data may have become harder on purpose: the loss comes down again by `again` (a third) of its rise, or
    rises in `stages` (2) lasting jumps or more, and ends less than `absurd` (10,000) times as high as it began; or the evaluation
    loss stays near its best. Of a watched run that has learned less than `least` (5 %) nothing is said.

    ## When to ignore it
    When the loss need not fall: adversaries, a curriculum whose data become harder. A log with rewards is not judged. Of a run that is
    watched it is an error only above the loss of the best constant prediction.

    ## Example
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    ```

    ## References
    Wortsman et al. 2023, Small-scale proxies for large-scale transformer training instabilities.
    """
    log = recorded(m)
    loss = required(log.loss, NO_LOSS)
    if led_by_rewards(log):
        return not_applicable(REWARDS)
    curve = loss.finite
    if len(curve.values) < limits["points" if m.log is not None else "steps"]:
        return not_measured(f"{len(curve.values)} values of the loss are too few")
    (first, last), (step, best) = ends(curve.values), lowest(curve)
    learned, lost = first - best, last - best
    finished = m.log is not None
    if finished and first > 0 and last > limits["blown"] * first and not _may_be_meant(log, curve, limits):
        message = f"the loss ({curve.name}) rises from {number(first)} to {number(last)} at the end (limit {number(limits['blown'])} times)"
        evidence = Evidence("last level over the first", last / first, limits["blown"], ">")
        remedies = look(m, "lower the rate, and see which layer grows first")
        return [found("error", message, evidence=evidence, remedies=remedies, confirmed=BY_VALUE)]
    if not finished and learned < limits["least"] * abs(first):
        return []
    least, clear = (limits["noise"] * size(curve.values) for size in (level_error if finished else noise, noise))
    if not lost > least or learned <= 0 or not lost > limits["lost"] * learned or changed_at_once(m):
        return []
    gone = last > first and learned > limits["learned"] * abs(first) and lost > clear
    gone = gone and (not _may_be_meant(log, curve, limits) if finished else _level_tells(m, last))
    share = percent(min(lost / learned, 1.0))
    where = (
        f"above the {number(first)} that it began with" if last > first else f"{share} of the way back to the {number(first)} of the start"
    )
    message = (
        f"the loss ({curve.name}) falls to {number(best)} by {at_step(step)}, and then rises to {number(last)} at the end, {where} "
        f"(limit {percent(limits['lost'])}): the last weights are worse than those of {at_step(step)}"
    )
    evidence = Evidence("of what was learned, lost again", lost / learned, limits["lost"], ">")
    remedies = look(m, f"go back to a checkpoint before {at_step(step)}, with a lower rate")
    return [found("error" if gone else "warning", message, evidence=evidence, remedies=remedies, confirmed=BY_VALUE)]


def _may_be_meant(log: LogFacts, curve: LogColumn, limits: Limits) -> bool:
    """Whether the loss may have risen because the data became harder."""
    held_out = log.evaluation.finite.values if log.evaluation is not None else ()
    if held_out and held_out[-1] - min(held_out) < limits["lost"] * (held_out[0] - min(held_out)):
        return True
    first, last = ends(curve.values)
    if last > limits["absurd"] * abs(first):
        return False
    size = max(1, len(curve.values) // PARTS)
    levels = [median(curve.values[i : i + size]) for i in range(0, len(curve.values) - size + 1, size)]
    lowest_part = levels.index(min(levels))
    top = max(levels[lowest_part:])
    again = top - levels[-1] > limits["again"] * (top - levels[lowest_part])
    return again or sum(s.lasts for s in spikes(curve, *JUMP, stretches=True)) >= limits["stages"]


def _level_tells(m: Measurement, last: float) -> bool:
    """Whether the level of a loss that goes on says that its run has failed: it may be resumed, or led by rewards."""
    return levelled(m.probe, m.chance) and not m.pretrained and m.chance is not None and last > m.chance
