"""Gradient clipping: missing, too tight, or entry by entry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING

from gradcheck.analysis.convergence import levelled, training_outcome
from gradcheck.analysis.wording import falls_short, number, optimizer_in_words, percent, run_in_words
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradcheck.types.finding import Severity
    from gradcheck.types.measurement import Measurement

SETTLED = 20  # steps before which norms are not judged
FEWEST = 40  # steps without which nothing is
BESIDE = 10  # steps on either side that a norm is compared with: norms that fall with the loss are no spikes
AFTER = 3  # steps within which a spike shows in the loss
SUDDEN = 5.0  # times the usual norm: where a training breaks down that was fine until then
BY_CHANCE = 0.01  # trainings in which chance alone gives a note
TIGHT = 10.0  # times the threshold: then clipping sets the size of nearly every step


@dataclass(frozen=True)
class Spike:
    """The gradient norm that stands out most from its neighbours."""

    step: int
    norm: float
    usual: float  # median of its neighbours
    jump: float  # of the loss in the next steps, as a share of the loss at the start

    @property
    def ratio(self) -> float:
        return self.norm / self.usual


def beside_neighbours(norms: Sequence[float]) -> dict[int, float]:
    """By step: the median of the norms around it, where both are finite and positive."""
    found = {}
    for t in range(SETTLED, len(norms)):
        usual = median([*norms[max(0, t - BESIDE) : t], *norms[t + 1 : t + 1 + BESIDE]])
        if 0 < usual < math.inf and 0 < norms[t] < math.inf:
            found[t] = usual
    return found


def largest_spike(m: Measurement) -> Spike | None:
    """Against the median of the steps around it. Norms below what was usual at the start are left out: they can do no harm."""
    norms, losses = m.probe.gradient_norms, m.probe.losses
    if len(norms) < FEWEST:
        return None
    least = median(norms[:SETTLED])
    usual = {t: x for t, x in beside_neighbours(norms).items() if norms[t] >= least}
    if not usual:
        return None
    t = max(usual, key=lambda step: norms[step] / usual[step])
    before = median(losses[max(0, t - BESIDE) : t + 1])
    after = max(losses[t + 1 : t + 1 + AFTER], default=before)
    scale = max(abs(losses[0]), 0.0 if levelled(m.probe, m.chance) else pstdev(losses[:SETTLED]))
    return Spike(t, norms[t], usual[t], (after - before) / max(scale, 1e-12))


def expected_largest(norms: Sequence[float]) -> float:
    """The largest norm over its neighbours' median that chance alone exceeds once in a hundred trainings of this length.

    The largest of many grows with their number. The logarithms of the ratios above the third quartile are taken to be
    distributed exponentially, which is wider than a normal distribution; the largest one itself is left out.
    """
    ratios = sorted(math.log(norms[t] / usual) for t, usual in beside_neighbours(norms).items())[:-1]
    if len(ratios) < SETTLED:
        return 1.0
    quartile = ratios[3 * len(ratios) // 4]
    above = [x - quartile for x in ratios if x > quartile]
    width = fmean(above) if above else 0.0
    return math.exp(quartile + width * math.log(len(above) / BY_CHANCE)) if above else math.exp(quartile)


def breakdown(m: Measurement) -> Spike | None:
    """The spike that ended a training which was fine until then; None when it diverged from the start, or did not end."""
    norms, losses = m.probe.gradient_norms, m.probe.losses
    finite = [n for n in norms if math.isfinite(n)]
    if m.probe.ended != "non-finite" or len(finite) < BESIDE:
        return None
    usual = median(finite)
    step = next((t for t in range(BESIDE, len(finite)) if finite[t] > SUDDEN * usual), None)
    if step is None or usual <= 0 or not all(x <= 1.5 * abs(losses[0]) for x in losses[:step]):
        return None
    return Spike(step, finite[step], usual, math.inf)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@rule(
    "CLIP001",
    "clipping-needed",
    up_to="warning",
    needs=("probe", "clipping"),
    limits={
        "spike_info": Limit(3.0, "times the usual norm", "healthy trainings measured for this rule stay at or below 3.0"),
        "spike_warning": Limit(5.0, "times the usual norm", "tuning playbook: outliers beyond the bulk; 3.0 healthy with a margin"),
        "spike_learning": Limit(10.0, "times the usual norm", "a healthy resnet with group normalization learns with 8.7"),
        "jump": Limit(0.25, "of the loss at the start", "heuristic: a spike that costs a quarter of the loss"),
    },
)
def clipping_needed(m: Measurement, limits: Limits) -> Verdict:
    """Single steps have gradients many times the usual size.

    ## What it finds
    Spikes of the total gradient norm in the probe training, in a training that does not clip below them.

    ## Why it matters
    One such step moves the weights as far as many ordinary ones, in the direction of a single batch. The loss jumps, and
    momentum and Adam's moments keep the outlier for a long time. Recurrent networks are known for it.

    ## How it is measured
    The 2-norm of all gradients at each step after the first 20, over the median of the 10 steps before and after it.
    Norms below the median of the first 20 steps do not count.

    ## Limits and their sources
    A note above `spike-info` 3, the largest ratio of healthy trainings of a hundred steps, and above what is to be expected by chance
    of the largest of so many steps, whose norms vary as these do. A warning above `spike-warning` 5 when the loss
    then rises by `jump` 25 % of its start or stops being finite, or when the probe does not learn clearly. While it learns clearly,
    and where the loss does not rise, the spike must be above `spike-learning` 10.

    ## When to ignore it
    With batches of one or two samples, and in reinforcement learning, norms vary that much anyway.

    ## Example
    ```python
    loss.backward()
    optimizer.step()
    ```

    ## Use instead
    ```python
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    ```

    ## References
    Pascanu et al. 2013, On the difficulty of training recurrent neural networks; Seetharaman et al. 2020, AutoClip;
    Godbole et al. 2023, Deep Learning Tuning Playbook.
    """
    spike = breakdown(m)
    if spike is None and len(m.probe.gradient_norms) < FEWEST:
        return not_measured(f"fewer than {FEWEST} steps have a gradient norm")
    spike = spike or largest_spike(m)
    by_chance = expected_largest(m.probe.gradient_norms)
    if spike is None or not spike.ratio > limits["spike_info"]:
        return []
    if m.clip is not None and (m.clip.kind != "norm" or m.clip.threshold < spike.norm):
        return []
    jumps = spike.jump > limits["jump"]
    breaks = training_outcome(m) == "diverges" or (jumps and falls_short(m))
    least = limits["spike_warning" if breaks else "spike_learning"]
    severity: Severity = "warning" if spike.ratio > least and (jumps or falls_short(m)) else "info"
    limit = least if severity == "warning" else max(limits["spike_info"], by_chance)
    if spike.ratio <= limit:
        return []
    threshold = percentile([n for n in m.probe.gradient_norms if math.isfinite(n)], 0.9)
    message = (
        f"the gradient's norm is {number(spike.norm)} at step {spike.step}, {number(spike.ratio)} times that of the steps around it "
        f"(limit {number(limit)})"
    )
    if math.isinf(spike.jump):
        message += ", and the loss is soon not finite any more"
    elif jumps:
        message += f", and the loss then rises by {percent(spike.jump)} of its start"
    elif training_outcome(m) == "diverges":
        message += "; the probe diverges"
    message += ": one batch undoes the steps of many"
    text = (
        f"call clip_grad_norm_(model.parameters(), {number(threshold)}) between backward and step: "
        "the 90th percentile of the measured norms"
    )
    evidence = [
        Evidence("largest gradient norm over its neighbours' median", spike.ratio, limit, ">", "times"),
        *([Evidence("rise of the loss after it", spike.jump, limits["jump"], ">", "of the loss at the start")] if jumps else []),
    ]
    remedies = (Remedy("clip-gradient-norm", text, "safe"),)
    return [found(severity, message, location=m.optimizer.site, evidence=evidence, remedies=remedies)]


@rule(
    "CLIP002",
    "clipping-too-tight",
    up_to="warning",
    needs=("probe", "parameters", "clipping"),
    limits={"share": Limit(0.5, "of the steps", "Deep Learning Tuning Playbook: more than half is extremely aggressive")},
    explains=("OPT002",),
)
def clipping_too_tight(m: Measurement, limits: Limits) -> Verdict:
    """Most steps are clipped: the threshold, not the learning rate, sets their size.

    ## What it finds
    A threshold for the gradient norm that lies below most norms of the probe training.

    ## Why it matters
    Clipping is meant for outliers. When it acts all the time, each step has the same length whatever the gradient says,
    and the rate that is written down is not the rate of the training. Steps do not get smaller near a minimum.

    ## How it is measured
    Share of the probe's steps after the first 20 whose gradient norm, before clipping, was above the threshold.

    ## Limits and their sources
    More than `share` 50 % of the steps. With an adaptive optimizer, which rescales gradients anyway, it is a note, unless
    what is left of the gradients is no larger than its epsilon. With others it is a warning when the usual norm is 10 times
    the threshold or the probe does not learn clearly (both heuristic).

    ## When to ignore it
    Large language models are often trained with a norm of 1 that clips nearly every early step, with Adam.

    ## Example
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1e-3)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=5.0)
    ```

    ## References
    Godbole et al. 2023, Deep Learning Tuning Playbook; Seetharaman et al. 2020, AutoClip.
    """
    clip, norms = m.clip, [n for n in m.probe.gradient_norms[SETTLED:] if math.isfinite(n)]
    if clip is None or clip.kind != "norm":
        return not_applicable("the scan knows of no clipping by norm")
    if clip.clipped is None or not norms:
        return not_measured(f"the probe took fewer than {SETTLED} steps")
    if not clip.clipped > limits["share"]:
        return []
    usual, optimizer = median(norms), m.optimizer
    if optimizer.adaptive:
        count = sum(p.count for p in m.parameters if p.trainable) or 1
        bad = optimizer.eps is not None and clip.threshold / count**0.5 < 10 * optimizer.eps and falls_short(m)
    else:
        bad = usual > TIGHT * clip.threshold or falls_short(m)
    severity: Severity = "warning" if bad and optimizer.given else "info"
    rate = optimizer.lr * clip.threshold / usual
    message = (
        f"{percent(clip.clipped)} of the steps are clipped (limit {percent(limits['share'])}): gradients of norm {number(usual)} "
        f"are cut to {number(clip.threshold)}"
    )
    message += (
        f", which {optimizer.name} mostly undoes"
        if optimizer.adaptive and not bad
        else f", so that {optimizer_in_words(m)} trains at about {number(rate)}, and {run_in_words(m.probe)}"
    )
    text = f"raise the threshold to {number(percentile(norms, 0.9))}, the 90th percentile of the measured norms"
    text += "" if optimizer.adaptive else ", and lower the learning rate instead if that diverges"
    evidence = [
        Evidence("share of clipped steps", clip.clipped, limits["share"], ">", "of the steps"),
        Evidence("usual gradient norm", usual, clip.threshold, ">"),
    ]
    remedies = (Remedy("clip-gradient-norm", text, "safe"),)
    return [found(severity, message, location=clip.site or optimizer.site, evidence=evidence, remedies=remedies)]


@rule(
    "CLIP003",
    "clipping-by-value",
    up_to="info",
    needs=("clipping",),
    limits={
        "coordinates": Limit(0.01, "of the entries", "heuristic"),
        "cosine": Limit(0.9, "cosine", "heuristic: 26 degrees off"),
    },
)
def clipping_by_value(m: Measurement, limits: Limits) -> Verdict:
    """Gradients are clipped entry by entry, which turns them away from the steepest descent.

    ## What it finds
    Clipping by value that cuts many entries, so that the step no longer goes where the gradient points.

    ## Why it matters
    Cutting each entry on its own changes the direction. The entries that matter most lose most.

    ## How it is measured
    Gradients of the first batch before training and of the last one after the probe: the share of entries beyond the
    threshold, and the cosine of the clipped gradient with the whole one.

    ## Limits and their sources
    More than `coordinates` 1 % of the entries are cut, and the cosine is below `cosine` 0.9. Both are heuristic.

    ## When to ignore it
    With gradients that have heavy tails, clipping by value can help (Zhang et al. 2020).

    ## Example
    ```python
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)
    ```

    ## Use instead
    ```python
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    ```

    ## References
    Zhang et al. 2020, Why are Adaptive Methods Good for Attention Models?
    """
    clip = m.clip
    if clip is None or clip.kind != "value":
        return not_applicable("the scan knows of no clipping by value")
    if clip.coordinates is None or clip.cosine is None:
        return not_measured("the gradients could not be compared")
    if not (clip.coordinates > limits["coordinates"] and clip.cosine < limits["cosine"]):
        return []
    message = (
        f"clipping by value at {number(clip.threshold)} cuts {percent(clip.coordinates)} of the gradient's entries and turns it: "
        f"its cosine with the whole gradient is {number(clip.cosine)} (limit {number(limits['cosine'])})"
    )
    evidence = [
        Evidence("share of clipped entries", clip.coordinates, limits["coordinates"], ">", "of the entries"),
        Evidence("cosine with the whole gradient", clip.cosine, limits["cosine"], "<"),
    ]
    norms = [n for n in m.probe.gradient_norms if math.isfinite(n)]
    limit = number(percentile(norms, 0.9)) if norms else "1"
    remedies = (Remedy("clip-gradient-norm", f"clip by norm instead: clip_grad_norm_(model.parameters(), {limit})", "safe"),)
    return [found("info", message, location=clip.site or m.optimizer.site, evidence=evidence, remedies=remedies)]


RULES = (clipping_needed, clipping_too_tight, clipping_by_value)
