import math

from gradcheck.analysis.convergence import best_experiment, outcome, training_outcome
from gradcheck.analysis.update_sizes import update_ratio
from gradcheck.analysis.wording import layers_in_words, learns_clearly, number, probe_failure
from gradcheck.types.checks import Recurrence
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

TINY = 1e-38  # the smallest float32, about; a gradient that underflowed is at most that
SMALL_UPDATE = 1e-3  # of the weight: the usual lower end of healthy steps (CS231n); with larger steps the rate is not too low
RECALL = "first token recalled, 26 initialisations x 2 seeds, T up to 60"


def decay(r: Recurrence) -> float:
    """Decades that the gradient loses from the step that the loss sees best to the one that it sees least; negative: it grows.

    The smaller of the ratio of the ends and of the line through all steps, so that one odd step decides nothing; 0 when they disagree.
    """
    if len(r.gradients) < 2 or r.slope is None:
        return 0.0
    ends = math.log10(max(r.gradients[-1], TINY) / max(r.gradients[0], TINY))
    line = r.slope * (len(r.gradients) - 1)
    return 0.0 if ends * line <= 0 else min(ends, line, key=abs)


def rate_cures(m: Measurement) -> bool:
    """Whether the user's optimizer learns at a lower rate; or at a higher one, and its steps are too small for any model."""
    run = best_experiment(m)
    if run is None:
        return False
    ratio = update_ratio(m)
    return (run.rate_factor or 1) <= 1 or ratio is None or ratio < SMALL_UPDATE


def hinders(m: Measurement) -> bool:
    """Whether the probe failed, and neither another rate nor less regularization is the cure."""
    lifted = m.regularization is not None and any(outcome(run, m.regularization.chance) == "learns" for run in m.regularization.runs)
    return bool(probe_failure(m)) and not rate_cures(m) and not lifted


def remedies(m: Measurement, r: Recurrence) -> tuple[Remedy, ...]:
    """Remedies that lengthen the memory of this kind of layer, the least invasive first."""
    kind = r.type.removesuffix("Cell")
    where = r.layer or "the loop"
    made: list[Remedy] = []
    longest = max(2, r.steps - 1)
    if kind == "GRU":
        text = f"to reach all {r.steps} steps draw the update gate's bias of {where} as log(uniform(1, {longest}))"
        made.append(Remedy("chrono-init", text, "safe"))
    if kind == "LSTM":
        now = f" (now {number(r.forget_bias)})" if r.forget_bias is not None else ""
        made.append(
            Remedy(
                "forget-bias", f"set the forget gate's bias of {where} to 1{now}: bias_ih 1, bias_hh 0; it remembers twice as long", "safe"
            )
        )
        made.append(
            Remedy(
                "chrono-init",
                f"to reach all {r.steps} steps draw the forget bias as log(uniform(1, {longest})), the input bias as minus it",
                "safe",
            )
        )
    else:
        now = f" (spectral radius now {number(r.spectral_radius)})" if r.spectral_radius is not None else ""
        made.append(Remedy("orthogonal-recurrent", f"initialise the recurrent weights of {where} with orthogonal_{now}", "safe"))
    made.append(
        Remedy(
            "pool-over-time",
            f"let the loss see the mean over the {r.steps} outputs, or attention over them, not only the last one",
            "unsafe",
        )
    )
    if elman(m, r):
        made.append(
            Remedy(
                "gated-recurrence", f"replace {where} by an LSTM whose forget gate starts open, or by a GRU: gates keep its state", "unsafe"
            )
        )
    return tuple(made)


def elman(m: Measurement, r: Recurrence) -> bool:
    """Whether it is torch's RNN itself: neither a cell, nor a class of the user, whatever its name."""
    layer = m.layer(r.layer)
    return r.type == "RNN" and (layer is None or (layer.kind, layer.type) == ("recurrent", "RNN"))


def severity_of(m: Measurement, r: Recurrence, size: float, limits: Limits) -> tuple[Severity, str]:
    """Severity of a decay (positive) or growth (negative) of `size` decades, and what confirms it when it is an error."""
    large, shrinks = abs(size) > limits["large_decades"], size > 0
    if m.pretrained or learns_clearly(m) or (shrinks and r.every_step):
        return "info", ""
    if training_outcome(m) == "learns":
        return ("warning" if large else "info"), ""
    if not hinders(m):
        return "info", ""
    sure = m.data.given and (large or best_experiment(m) is None)  # made-up data may hold nothing to learn
    return ("error", probe_failure(m)) if sure else ("warning", "")


def matters(m: Measurement, size: float, limits: Limits) -> bool:
    """Whether a decay is worth reporting: default layers lose two decades in ten steps, and usually learn."""
    if size < 0:
        return size < -limits["growth"]
    return size > limits["decades" if hinders(m) else "large_decades"]


def meaning(m: Measurement, r: Recurrence, severity: Severity, shrinks: bool) -> str:
    if severity == "error":
        return "what the first steps hold is not learned" if shrinks else "the first steps drown out the others"
    if r.every_step:
        return "each step learns only from the few steps before it" if shrinks else "one step's loss reaches too far back"
    if training_outcome(m) == "learns":
        return "the probe training learns from the last steps" if shrinks else "the probe training learns anyway"
    return "what the first steps hold is hardly learned" if shrinks else "steps will be unstable"


def finding(m: Measurement, hit: list[tuple[Recurrence, float]], limits: Limits) -> Finding:
    """One finding for all layers that shrink, or all that grow: one cause, and one cure."""
    r, size = max(hit, key=lambda pair: abs(pair[1]))
    severity, confirmed = severity_of(m, r, size, limits)
    shrinks, limit = size > 0, limits["growth" if size < 0 else "decades" if hinders(m) else "large_decades"]
    far = "the first" if len(r.gradients) == r.steps else "the farthest"
    others = [x.layer for x, _ in hit if x is not r]
    message = (
        f"gradient {'shrinks' if shrinks else 'grows'} on its way back through time in {r.layer or 'the model'} ({r.type}): "
        f"from {number(r.gradients[-1])} at the last of {len(r.gradients)} steps to {number(r.gradients[0])} at {far}, "
        f"{number(abs(size))} decades (limit {number(limit)}), {number(abs(size) / (len(r.gradients) - 1))} per step"
        f"{'; also in ' + layers_in_words(others) if others else ''}: {meaning(m, r, severity, shrinks)}"
    )
    evidence = (
        Evidence("change of the gradient over time", abs(size), limit, ">", "decades", r.layer),
        Evidence("change per time step", abs(size) / (len(r.gradients) - 1), limit / (len(r.gradients) - 1), ">", "decades", r.layer),
    )
    clip = Remedy("clip-gradient-norm", "clip the gradient's norm, at 1 for a start: it limits the damage, not the cause", "advice")
    cures = remedies(m, r) if shrinks else (*remedies(m, r)[:1], clip)
    names = tuple(dict.fromkeys(x.layer for x, _ in hit))
    return found(severity, message, layers=names, location=r.site, evidence=evidence, remedies=cures, confirmed=confirmed)


@rule(
    "GRAD003",
    up_to="error",
    needs=("recurrence", "probe", "parameters", "regularization"),
    limits={
        "decades": Limit(2.0, "decades", f"{RECALL}: 22 of 24 runs below 1.85 decades solve it, 3 of 6 between 2 and 3.5"),
        "large_decades": Limit(4.0, "decades", f"{RECALL}: 1 of 22 runs beyond 4.2 decades solves it"),
        "growth": Limit(2.0, "decades", "heuristic: a hundredfold gradient at the first step"),
    },
    explains=("INIT004", "OPT001", "OPT007", "OPT002", "LOSS005", "GRAD001", "GRAD002", "ACT004", "CLIP001"),
)
def gradient_through_time(m: Measurement, limits: Limits) -> Verdict:
    """The gradient shrinks or grows exponentially on its way back through the time steps of a recurrent layer.

    ## What it finds
    Recurrent layers (RNN, GRU, LSTM, their cells in a loop, and loops written by hand) through which the loss
    reaches the last time steps only, or the first ones far too strongly.

    ## Why it matters
    What the first steps hold cannot be learned when their gradient is a ten-thousandth of the last step's. With
    torch's default weights the gradient loses 0.2 decades per step in LSTM and GRU and 0.25 in RNN: memory
    reaches back ten steps per two decades.

    ## How it is measured
    On 16 samples before training (4 when the model has no recurrent layer of torch): the 2-norm of the gradient
    of your loss at the input of each time step; for loops written by hand, at what the recurrent weights put out
    in each round. A sample's steps are counted back from the last one that the loss sees, so padding does not
    count; layers that read both ways are judged by their blind spot. The decay is the ratio of the ends or that
    of the line through all steps, whichever is smaller. Loops are told from blocks that share weights over depth
    by the new slice of the input that each round takes. When the loss sees the output of every step, the last
    step's output is looked at instead of the loss.

    ## Limits and their sources
    When the probe training fails, and neither less regularization nor a lower rate is the cure (nor a higher one, where
    steps change the weights by less than 0.1 %): beyond `decades` 2, or growth beyond `growth` 2 decades, an error if no
    other rate learns at all, else a warning; beyond `large-decades` 4 always an error; on synthetic data a warning.
    Otherwise nothing is said up to 4 decades; beyond them a warning when the loss falls by less than 10 %, and
    advice when it falls further: tasks that the last steps suffice for train well, and so do losses at every
    step. The decades are from recalling the first of up to 60 tokens.

    ## When to ignore it
    When everything that matters is in the last steps.

    ## Example
    ```python
    self.lstm = nn.LSTM(8, 64, batch_first=True)
    logits = self.head(self.lstm(x)[0][:, -1])  # 60 steps: the gradient at the first is 1e-12 of the last one's
    ```

    ## Use instead
    ```python
    self.lstm = nn.LSTM(8, 64, batch_first=True)
    with torch.no_grad():
        self.lstm.bias_ih_l0[64:128].fill_(1.0)  # the forget gate
        self.lstm.bias_hh_l0[64:128].zero_()
    logits = self.head(self.lstm(x)[0].mean(1))
    ```

    ## References
    Bengio et al. 1994; Hochreiter and Schmidhuber 1997, Long Short-Term Memory; Gers et al. 2000, Learning to
    forget; Pascanu et al. 2013; Jozefowicz et al. 2015; Tallec and Ollivier 2018, Can recurrent neural networks
    warp time?
    """
    if not m.recurrences:
        return not_applicable("no recurrent layer with at least 8 time steps")
    hits = [(r, d) for r, d in ((r, decay(r)) for r in m.recurrences) if matters(m, d, limits)]
    return [finding(m, same, limits) for same in ([h for h in hits if h[1] > 0], [h for h in hits if h[1] < 0]) if same]
