import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from gradcheck.analysis.convergence import levelled, training_outcome
from gradcheck.analysis.statistics import percentile
from gradcheck.analysis.wording import falls_short, number, percent
from gradcheck.rules.clipping import SETTLED
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule

FEWEST = 40  # steps; a shorter probe is not judged
BESIDE = 10  # steps on either side that a norm is compared with: norms that fall with the loss are not spikes
AFTER = 3  # steps within which a spike must show in the loss
SUDDEN = 5.0  # times the usual norm: enough when the training, fine until then, breaks down at that step
BY_CHANCE = 0.01  # share of trainings in which chance alone may give a note


@dataclass(frozen=True)
class NormSpike:
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


def largest_spike(m: Measurement) -> NormSpike | None:
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
    return NormSpike(t, norms[t], usual[t], (after - before) / max(scale, 1e-12))


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


def breakdown(m: Measurement) -> NormSpike | None:
    """The spike that ended a training which was fine until then; None when it diverged from the start, or did not end."""
    norms, losses = m.probe.gradient_norms, m.probe.losses
    finite = [n for n in norms if math.isfinite(n)]
    if m.probe.ended != "non-finite" or len(finite) < BESIDE:
        return None
    usual = median(finite)
    step = next((t for t in range(BESIDE, len(finite)) if finite[t] > SUDDEN * usual), None)
    if step is None or usual <= 0 or not all(x <= 1.5 * abs(losses[0]) for x in losses[:step]):
        return None
    return NormSpike(step, finite[step], usual, math.inf)


@rule(
    "CLIP001",
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
    """A few steps have gradients many times the usual size.

    ## What it finds
    Spikes of the total gradient norm in the probe training, in a training that does not clip below them.

    ## Why it matters
    One such step moves the weights as far as many ordinary ones, in the direction of a single batch. The loss jumps, and
    momentum and Adam's moments keep the outlier for a long time. Recurrent networks are known for it.

    ## How it is measured
    The 2-norm of all gradients at each step after the first 20, over the median of the 10 steps before and after it.
    Norms below the median of the first 20 steps do not count.

    ## Limits and their sources
    A note above `spike-info` 3, the largest ratio of most healthy trainings of a hundred steps (a healthy ResNet had 8.7), and
    above what chance would give for the largest of so many steps whose norms vary as these do. A warning above `spike-warning`
    5 when the loss then rises by `jump` 25 % of its start or stops being finite, or when the probe does not learn clearly.
    While it learns clearly, and where the loss does not rise, the spike must be above `spike-learning` 10. The loss of a policy
    gradient says nothing when it rises: a note.

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
    jumps = spike.jump > limits["jump"] and (not m.probe.surrogate or math.isinf(spike.jump))
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
    message += ": a single batch can undo the progress of many"
    text = (
        f"call clip_grad_norm_(model.parameters(), {number(threshold)}) between backward and step: "
        "the 90th percentile of the measured norms"
    )
    evidence = [
        Evidence("largest gradient norm over its neighbours' median", spike.ratio, limit, ">", "times"),
        *([Evidence("rise of the loss after it", spike.jump, limits["jump"], ">", "of the loss at the start")] if jumps else []),
    ]
    remedies = Remedy("clip-gradient-norm", text, "safe")
    return [found(severity, message, location=m.optimizer.site, evidence=evidence, remedies=remedies)]
