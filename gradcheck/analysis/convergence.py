"""Does a short training run learn? Pure functions of a Run, shared by the measuring code and the rules.

The loss is compared with the better of two references: where it started, and what the best constant prediction
costs ("chance"). A classifier whose loss falls from 40 to log(classes) and stays there has learned nothing about its inputs; one that is
still on its way there is not judged. Nor is one whose level means nothing, unless it falls clearly: losses below zero, whose constant
is arbitrary, and those of which `Run.surrogate` says so.
"""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev, stdev
from typing import Literal

from gradcheck.types.measurement import Measurement
from gradcheck.types.training import SAME_RATE_LONGER, Regularization, Run

Outcome = Literal["learns", "stalls", "diverges", "unknown"]

CLEAR_FALL = 0.10  # a relative fall this large is learning, whatever the noise
LEAST_FALL = 0.02  # a smaller one is not (heuristic: a fiftieth of the loss is no change)
STANDARD_ERRORS = 3.0  # what a fall between the two must exceed,
# and in fewer steps than these: of the random workloads whose loss falls by 2 to 10 % in 300, more fail than train.
PATIENCE = 250
DIVERGED = 1.5  # the loss ends this many times above its reference
FIRST_BATCHES = 8  # whose first losses are those of the start: many more, and the run has learned meanwhile
SETTLED_VISITS = 10  # losses that the end of a run is averaged over, at least, where it is four times as long
# Fewer steps say nothing about a run that did not fall: a healthy eca_nfnet_l0 rises from 2.2 to 3.4 in its first 25.
FEWEST_STEPS = 40
FEWEST_LIVE = 200  # of the user's own run before what it loses again counts (measured: healthy SGD, 2.11, 1.66 by step 52, 1.91 at 74)
RELAPSED = 0.5  # of a fall that is lost again (definition)
BLOWN_UP = 100.0  # unless the loss is this many times above its reference,
BLOWN_UP_ABOVE_CHANCE = 10.0  # or, all the time at its end, this many times above both its first value and chance
# A small GPT at rates that it recovers from had fallen by 5 % after so many steps; at a rate at which it never learned, not at all.
FEWEST_HELD_UP = 30
FEWEST_COMPARED = 8  # steps after which two runs are compared step by step
FEWEST_VISIBLE = 6  # steps that show a loss blow up
NEGLIGIBLE = 1e-3  # losses that start below it start at their optimum, as distances to a copy of the model do: any later one is a rise
LEAST_REACH = 1e-4  # of the loss: what is closer to its floor at the start is no measure
CRAWL = 0.06  # of the start: random workloads with too low a rate had fallen by 4 % at most (benchmarks/predictions.py)
FAR = 2.0  # times chance: well above the plateau of models that learn nothing of their inputs
CREEP = 1 / 3  # of the way down to chance, where learning begins: at a steady pace, it takes three times the steps
LONG = 1000  # steps: a run that is still far after so many, ten times a probe's, has to lead somewhere
REACH = 10.0  # runs this many times as long as the probe are usual


def start_and_end(run: Run) -> tuple[float, float, float]:
    """Mean loss at the start and over the last visits of the batches, and the standard error of the latter.

    The end covers every batch equally often when the run cycled through them, and the start is the end plus what the first batches
    lost since, so that harder batches do not pass for progress; the error is then estimated from how much the loss of a batch differs
    from one visit to the next.
    """
    losses, batches, n = run.losses, max(1, run.batches), len(run.losses)
    if n < 2:
        return (losses[0], losses[0], 0.0) if losses else (math.nan, math.nan, 0.0)
    if run.live:
        return _ends_of_live(losses)
    if n < 2 * batches:
        quarter = max(1, n // 4)
        return fmean(losses[:quarter]), fmean(losses[-quarter:]), _standard_error(losses[-quarter:])
    window = _end_window(n, batches)
    last = losses[-window:]
    start = fmean(losses[:batches])
    if batches > FIRST_BATCHES and all(map(math.isfinite, losses)):
        visits = [fmean(last[(i - n + window) % batches :: batches]) for i in range(FIRST_BATCHES)]
        start = fmean(last) + fmean(losses[:FIRST_BATCHES]) - fmean(visits)
        before = fmean(last) + losses[0] - visits[0]  # any step: the first steps may have raised the loss
        start = before if 0 < DIVERGED * before < start else start
    changes = [b - a for a, b in zip(losses[-window - batches : -batches], last, strict=True)] if n >= window + batches else last
    return start, fmean(last), _standard_error(changes) / 2**0.5


def untouched(run: Run) -> float:
    """The loss before any step: where the batches differ, at the level of the end, less what the first batch lost until its last visit."""
    losses, batches, n = run.losses, max(1, run.batches), len(run.losses)
    if batches == 1 or n < 2 * batches or run.live:
        return losses[0]
    last = losses[n - _end_window(n, batches) :]
    return fmean(last) + losses[0] - fmean(losses[n - len(last) + (-(n - len(last))) % batches :: batches])


def _end_window(n: int, batches: int) -> int:
    """How many losses the end of a run is averaged over: whole rounds of the batches."""
    return batches * max(1, min(n // (4 * batches), -(-SETTLED_VISITS // batches)))


def _ends_of_live(losses: Sequence[float]) -> tuple[float, float, float]:
    """The same for the user's own run: its first few losses, however long it is, and its last tenth."""
    last = losses[-max(SETTLED_VISITS, len(losses) // 10) :]
    return fmean(losses[: min(SETTLED_VISITS, max(1, len(losses) // 4))]), fmean(last), _standard_error(last)


def _standard_error(values: Sequence[float]) -> float:
    known = len(values) > 1 and all(map(math.isfinite, values))  # statistics.stdev cannot take infinities
    return stdev(values) / len(values) ** 0.5 if known else 0.0


def relative_decrease(run: Run, chance: float | None = None) -> float:
    """How far the loss fell below its reference, relative to it: 1 is all the way to its floor, negative is a rise."""
    chance = run.chance if run.chance is not None else chance
    start, end, _ = start_and_end(run)
    if not math.isfinite(end) or run.ended == "non-finite":
        return -math.inf
    reference = _reference(start, chance)
    if not math.isfinite(reference):
        return 1.0
    return (reference - end) / max(_scale(run, reference, chance), 1e-12)


def _reference(start: float, chance: float | None) -> float:
    return min(start, chance) if chance is not None and chance > 0 and math.isfinite(start) else start


def _scale(run: Run, reference: float, chance: float | None) -> float:
    """The unit of a fall: the loss itself, or where its level means nothing at least its spread from batch to batch."""
    first = run.losses[: max(1, run.batches)]
    varies = len(first) > 1 and not levelled(run, chance) and all(map(math.isfinite, first))
    return max(_reach(run, reference), pstdev(first) if varies else 0.0)


def _reach(run: Run, reference: float) -> float:
    """How far a loss can fall: to zero, or to the entropy of soft targets."""
    return max(abs(reference) - run.floor, LEAST_REACH * abs(reference))


def levelled(run: Run, chance: float | None = None) -> bool:
    """Whether the level of the loss says how well the model does."""
    return not run.surrogate and (chance is not None or min(run.losses, default=0.0) >= 0)


def on_its_way(run: Run, chance: float | None = None) -> bool:
    """Whether the loss has left its start, keeps falling, and leads to where it counts as learning.

    Far above chance a continuing fall is enough for some time. Near chance, where models that learn nothing from their inputs stay, and
    after many steps, the fall must also lead there: extrapolated, with its slowing down over the last quarters of the run.
    """
    chance = run.chance if run.chance is not None else chance
    start, end, error = start_and_end(run)
    if run.live or run.ended in ("non-finite", "raised") or not math.isfinite(start) or not math.isfinite(end):
        return False
    reference = _reference(start, chance)
    goal = reference - CLEAR_FALL * (_reach(run, reference) if reference > 0 else reference)
    n, batches = len(run.losses), max(1, run.batches)
    quarter = n / 4
    ahead = quarter - _end_window(n, batches) / 2 if n >= 2 * batches else n / 8  # from the third quarter to the middle of the end
    half, last = _loss_at(run, 0.5), _loss_at(run, 0.75)
    before, now = half - last, (last - end) * quarter / max(ahead, 1.0)
    if end <= goal or start - end < CRAWL * abs(start) or last - end <= STANDARD_ERRORS * error or before <= 0:
        return False
    if chance is not None and chance > 0 and end > FAR * chance and n <= LONG:
        return True
    slowed = min(now / before, 1 - 1 / (4 * REACH))
    return end - now * slowed / (1 - slowed) <= goal


def _loss_at(run: Run, share: float) -> float:
    """Mean loss around a place in the run, over whole rounds of the batches where there are some."""
    n, batches = len(run.losses), max(1, run.batches)
    window = batches * max(1, n // (8 * batches)) if n >= 4 * batches else max(1, n // 8)
    first = max(0, min(n - window, round(share * n) - window // 2))
    return fmean(run.losses[first : first + window])


def ran_away(run: Run, chance: float | None = None) -> bool:
    """Whether the loss went up from what it was before any step, and stayed there to the end of the run.

    The first loss is the only one that no step has changed. It is one batch's, so that with more than one the batch must show the
    rise itself when it comes round again.
    """
    n, batches = len(run.losses), max(1, run.batches)
    if n < FEWEST_VISIBLE or not math.isfinite(run.losses[0]):
        return False
    known, first = chance is not None and chance > 0, run.losses[0]
    if not known and first < NEGLIGIBLE:
        return False
    reference = max(first, chance or 0.0)
    least = min(run.losses[-max(3, n // 4) :])
    if n < FEWEST_STEPS:
        return least > (BLOWN_UP_ABOVE_CHANCE if known else BLOWN_UP) * reference
    again = run.losses[(n - 1) // batches * batches] if n >= 2 * batches else math.inf if known else 0.0
    return min(least, again) > DIVERGED * reference


def _beyond_all_measure(run: Run) -> bool:
    """Whether a loss whose level says nothing rose so far, and stayed there, that it counts as diverged."""
    return min(run.losses[-max(3, len(run.losses) // 4) :]) > BLOWN_UP**3 * max(abs(run.losses[0]), NEGLIGIBLE)


def outcome(run: Run, chance: float | None = None) -> Outcome:
    """The outcome of a run. `chance` is the probe's; a run on other batches has its own."""
    chance = run.chance if run.chance is not None else chance
    if run.ended == "non-finite":
        return "diverges"
    if run.ended == "raised" or not run.losses:
        return "unknown"
    if run.ended == "learned":
        return "learns"
    found = _live_outcome(run, chance) if run.live else _outcome(run, chance)
    return "unknown" if run.beside and found in ("stalls", "diverges") else found


def _outcome(run: Run, chance: float | None) -> Outcome:
    if ran_away(run, chance) and (levelled(run, chance) or _beyond_all_measure(run)):
        return "diverges"
    start, end, error = start_and_end(run)
    relative = relative_decrease(run, chance)
    if relative >= CLEAR_FALL and (not run.floor or relative * _reach(run, _reference(start, chance)) > STANDARD_ERRORS * error):
        return "learns"
    if not levelled(run, chance):
        return "unknown"
    reference = start if chance is None or chance <= 0 else max(start, chance)
    if len(run.losses) < FEWEST_STEPS:
        return "diverges" if end > BLOWN_UP * max(abs(reference), 1e-12) else "unknown"
    if end - reference > (DIVERGED - 1) * max(abs(reference), 1e-12):
        return "diverges"
    scale = max(_reach(run, abs(start) if chance is None or chance <= 0 else min(abs(start), chance)), 1e-12)
    if relative >= LEAST_FALL and relative * scale > STANDARD_ERRORS * error and len(run.losses) < PATIENCE:
        return "learns"
    cut_off = run.ended == "budget" and run.batches > 1 and len(run.losses) < PATIENCE  # on a plateau that it may yet leave
    return "unknown" if cut_off or on_its_way(run, chance) else "stalls"


def held_up(run: Run, chance: float | None = None) -> bool:
    """Whether a run that was cut off on a plateau has not fallen at all: it may yet leave it, and is worth comparing with other rates."""
    cut_off = run.ended == "budget" and len(run.losses) >= FEWEST_HELD_UP and levelled(run, chance)
    flat = relative_decrease(run, chance) < LEAST_FALL and not on_its_way(run, chance)
    return cut_off and flat and outcome(run, chance) == "unknown"


def creeps(run: Run, chance: float | None) -> bool:
    """Whether a loss far above chance falls, but has come little of the way down."""
    if chance is None or len(run.losses) < PATIENCE or not levelled(run, chance) or not on_its_way(run, chance):
        return False
    start, end, _ = start_and_end(run)
    return end > FAR * chance > 0 and start - end < CREEP * (start - chance)


def comes_down(run: Run, probe: Run, chance: float | None) -> bool:
    """Whether a run lies clearly below a probe that has stayed above chance, after the same steps on the same batches."""
    n = len(run.losses)
    above = chance is not None and start_and_end(probe)[1] > (1 + CLEAR_FALL) * chance > 0
    if not above or not FEWEST_STEPS <= n <= len(probe.losses) or len(probe.losses) < PATIENCE:
        return False
    first = n - max(min(run.batches, n), n // 4)
    gains = [b - a for a, b in zip(run.losses[first:], probe.losses[first:n], strict=True)]
    return fmean(gains) > max(CLEAR_FALL * _reach(run, fmean(probe.losses[first:n])), STANDARD_ERRORS * _standard_error(gains))


def sooner(run: Run, probe: Run) -> bool:
    """Whether a run that was cut off lies clearly below both its start and the probe, after the same steps on the same batches."""
    n = len(run.losses)
    if run.ended != "budget" or not FEWEST_COMPARED <= n <= len(probe.losses):
        return False
    last = slice(n - max(3, n // 3), n)
    here, there = run.losses[last], probe.losses[last]
    if not all(map(math.isfinite, (*here, *there))):
        return False
    return fmean(here) < min(run.losses[0], fmean(there)) - CLEAR_FALL * _reach(run, run.losses[0])


def no_lower(run: Run, probe: Run, chance: float | None) -> bool:
    """Whether a run that was cut off is no lower than a probe that stays, after the same steps on the same batches: they became easier."""
    n = len(run.losses)
    if run.ended != "budget" or not FEWEST_COMPARED <= n <= len(probe.losses) or outcome(probe, chance) == "diverges":
        return False
    last = slice(n - max(3, n // 3), n)
    return fmean(run.losses[last]) >= fmean(probe.losses[last])


def steps_to_learn(run: Run, chance: float | None) -> float:
    """Steps in which the user's rate learns, if rate times steps is the same (measured: 682 foretold, 619 taken; 8,464, over 3,000)."""
    goal, n = (1 - CLEAR_FALL) * min(run.losses[0], chance or math.inf), len(run.losses)
    rounds = (i for i in range(n - run.batches + 1) if fmean(run.losses[i : i + run.batches]) < goal)
    return next(rounds, n) * (run.rate_factor or 1)


def faster(run: Run, probe: Run, chance: float | None) -> bool:
    """Whether a run at another rate shows that this rate gets on where the probe does not."""
    factor = run.rate_factor or 1
    return factor != 1 and (sooner(run, probe) or (factor > 1 and comes_down(run, probe, chance)))


def _live_outcome(run: Run, chance: float | None) -> Outcome:
    """Outcome of the user's own run. A loss that stays, or rises a little, proves nothing: it may be resumed or driven by rewards.

    It diverges where the loss stays well above both its start and chance; where chance is not known, or few steps are, far above.
    """
    if relative_decrease(run, chance) >= CLEAR_FALL:
        return "learns"
    start, last = start_and_end(run)[0], run.losses[-SETTLED_VISITS:]
    if chance is not None and chance > 0:
        times = DIVERGED if len(run.losses) >= FEWEST_STEPS else BLOWN_UP_ABOVE_CHANCE
        limit = times * max(min(run.losses[0], start), chance)
    elif levelled(run, chance):
        limit = BLOWN_UP * max(abs(start), NEGLIGIBLE)
    else:
        limit = BLOWN_UP**3 * max(abs(start), NEGLIGIBLE)  # heuristic: its level says nothing, short of numbers that run away
    return "diverges" if len(last) == SETTLED_VISITS and min(last) > limit else "unknown"


def unsettled(run: Run, chance: float | None = None) -> bool:
    """Whether the loss was, in the second half of the run, once more well above where it started or above chance."""
    n = len(run.losses)
    if n < FEWEST_STEPS:
        return False
    start = start_and_end(run)[0]
    reference = start if chance is None or chance <= 0 else max(start, chance)
    return max(run.losses[n // 2 :]) - reference > (DIVERGED - 1) * max(abs(reference), 1e-12)


def relapse(run: Run, chance: float | None = None) -> tuple[float, int] | None:
    """The lowest level of a loss that had fallen clearly and is half way back or more, and the step where it was reached; else None."""
    if run.surrogate:  # with the actions of an earlier policy it goes up and down
        return None
    n, start = len(run.losses), start_and_end(run)[0]
    window = max(SETTLED_VISITS, run.batches if run.batches <= n // 4 else n // 5 if run.live else 0)
    if n < max(FEWEST_LIVE if run.live else FEWEST_STEPS, 3 * window) or not all(map(math.isfinite, run.losses)):
        return None
    levels = [fmean(run.losses[t : t + window]) for t in range(n - window + 1)]
    reference = start if chance is None or chance <= 0 else min(start, chance)
    lowest = min(levels)
    fell = reference - lowest
    at = levels.index(lowest)
    if fell < 2 * CLEAR_FALL * max(abs(reference), 1e-12) or levels[-1] - lowest < RELAPSED * fell:
        return None
    errors = _standard_error(run.losses[at : at + window]), _standard_error(run.losses[-window:])
    if run.live and levels[-1] - lowest < STANDARD_ERRORS * math.hypot(*errors):
        return None  # each batch is new to the loop: the lowest level of many is low by chance
    return lowest, at + window


def training_outcome(m: Measurement) -> Outcome:
    """Outcome of the probe training with the user's own optimizer.

    One that fails, and learns in another order, learns; and so does one that has learned the data behind the noise of its dropout.
    One that was cut off without having fallen stalls where a lower rate brings the loss down.
    """
    if depends_on_order(m) or learns_behind_noise(m):
        return "learns"
    if held_up(m.probe, m.chance) and any(0 < (r.rate_factor or 1) < 1 and experiment_outcome(r, m) == "learns" for r in m.experiments):
        return "stalls"
    return outcome(m.probe, m.chance)


def data_fall(r: Regularization) -> float:
    """How far the probe brought the loss of the data down, looking past the regularization, relative to the better of start and chance."""
    start, end = r.start_loss, r.trained_loss
    if start is None or end is None or not math.isfinite(end):
        return -math.inf
    reference = start if r.chance is None else min(start, r.chance)
    return (reference - end) / max(abs(reference), 1e-12)


def learns_behind_noise(m: Measurement) -> bool:
    """Whether the loss of the probe stays up only because of dropout or smoothed labels: without them it has fallen clearly."""
    r = m.regularization
    return r is not None and r.penalty is None and data_fall(r) >= CLEAR_FALL and outcome(m.probe, m.chance) in ("stalls", "diverges")


def depends_on_order(m: Measurement) -> bool:
    """Whether the probe failed, and learned clearly with its batches in another order.

    A run that the time cut off after a few steps has seen some batches only. A probe that had fallen as clearly, and came back, shows
    that such a fall need not last: the other order must outlast the probe's.
    """
    lost = relapse(m.probe, m.chance)
    least = FEWEST_STEPS if lost is None else 2 * lost[1]
    repeated = [r for r in m.experiments if r.rate_factor == 1 and (len(r.losses) > least or (lost is None and r.ended != "budget"))]
    learned = any(r.ended == "learned" or relative_decrease(r, m.chance) >= CLEAR_FALL for r in repeated)
    return learned and outcome(m.probe, m.chance) in ("stalls", "diverges")


def experiment_outcome(run: Run, m: Measurement) -> Outcome:
    """Outcome of an experiment. On one batch the chance level of the whole data says nothing; the run has its own."""
    if faster(run, m.probe, m.chance):
        return "learns"
    return outcome(run, m.chance if run.rate_factor is not None else None)


def learned_later(m: Measurement) -> Run | None:
    """The probe at its own rate over more steps, where it learned in these: the rate takes time, and keeps nothing from being learned."""
    return next((r for r in m.experiments if r.name == SAME_RATE_LONGER and experiment_outcome(r, m) == "learns"), None)


def any_learned(m: Measurement) -> bool:
    """Whether any experiment after a failed probe learned."""
    return any(experiment_outcome(run, m) == "learns" for run in m.experiments)


def best_experiment(m: Measurement) -> Run | None:
    """The experiment at another rate of the user's optimizer whose loss fell furthest, if one learned."""
    learned = [r for r in m.experiments if r.rate_factor is not None and experiment_outcome(r, m) == "learns"]
    return max(learned, key=lambda r: relative_decrease(r, m.chance), default=None)
