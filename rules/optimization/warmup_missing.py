import math

from gradcheck.analysis.convergence import experiment_outcome
from gradcheck.analysis.wording import learns_clearly, number, optimizer_in_words
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

NOISE = 1.02  # times the loss at the start: batches differ by as much. Measured: 1.006 in a net of 4 million weights that learns well
EARLY = 10  # steps in which a first update that was too large shows in the loss


@rule(
    "OPT005",
    up_to="warning",
    needs=("parameters", "probe", "functional_step"),
    limits={
        "functional_step": Limit(
            1.0, "of the output's spread", "transformers that failed without warm-up: 1.6 to 2.2; with it 0.01 to 0.17"
        ),
        "spike": Limit(2.0, "of the loss at the start", "heuristic: a first update that undoes more than was there"),
    },
)
def warmup_missing(m: Measurement, limits: Limits) -> Verdict:
    """The first update changes the model's output by more than its own spread.

    ## What it finds
    Adaptive optimizers whose very first step, at the full rate, throws the output far from where it was.

    ## Why it matters
    Adam's first step has the size of the rate in every weight, whatever the gradient: its moments have seen one batch. In deep
    models these small steps add up. The benefit of the initialisation is lost, and post-norm transformers may not recover.

    ## How it is measured
    On a copy: output on one batch before and after the first update with the same dropout, rms(change) over the standard
    deviation of the output (at least 0.1).

    ## Limits and their sources
    Above `functional-step` 1: of the transformers measured for this rule those that failed were at 1.6 to 2.2, healthy
    pre-norm ones survive 1.8. So it is a warning only when the loss then rises above `spike` 2 times its start within
    10 steps, or when the probe does not learn clearly and learns at a lower rate; else a note. A loss that learns clearly and is below its
    start, within 2 %, in every step after those 10 has made the rise good: a note too.

    ## When to ignore it
    When your training warms up with a scheduler that the scan did not see.

    ## Example
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=1000)
    ```

    ## References
    Ma and Yarats 2021, On the adequacy of untuned warmup for adaptive optimization; Xiong et al. 2020, On Layer
    Normalization in the Transformer Architecture.
    """
    step, o = m.functional_step, m.optimizer
    if not o.given or not o.adaptive:
        return not_applicable("the optimizer is not adaptive, or was assumed")
    if o.warming_up:
        return not_applicable("the rate is being warmed up")
    if step is None:
        return not_measured("the first update was not compared")
    if not step > limits["functional_step"]:
        return []
    spike = _early_spike(m)
    lower = any((r.rate_factor or 1) < 1 and experiment_outcome(r, m) == "learns" for r in m.experiments)
    bad = (spike > limits["spike"] and not _made_good(m)) or (not learns_clearly(m) and lower)
    beta = o.betas[1] if len(o.betas) > 1 and o.betas[1] < 1 else 0.999
    steps = round(2 / (1 - beta))
    message = (
        f"the first update of {optimizer_in_words(m)} changes the output by {number(step)} times its spread "
        f"(limit {number(limits['functional_step'])})"
    )
    message += f", and the loss rises to {number(spike)} times its start within {EARLY} steps" if spike > 1.05 else ""
    message += f" and is below it again for good after {EARLY}" if spike > limits["spike"] and _made_good(m) else ""
    message += ": the initialisation is undone before the moments are known"
    text = f"raise the rate linearly from 0 to {number(o.lr)} over the first {steps} steps, or a tenth of a shorter run"
    evidence = [Evidence("change of the output by the first update", step, limits["functional_step"], ">", "of its spread")]
    if math.isfinite(spike):
        evidence.append(Evidence("largest loss of the first steps", spike, limits["spike"], ">", "of the loss at the start"))
    slower = Remedy("lower-learning-rate", f"or lower the rate from {number(o.lr)}, if it is too high after a warm-up too", "safe")
    remedies = (Remedy("warm-up", text, "safe"), slower)
    return [found("warning" if bad else "info", message, location=o.site, evidence=evidence, remedies=remedies)]


def _early_spike(m: Measurement) -> float:
    """Largest loss of the first steps over the loss at the start."""
    losses = m.probe.losses
    return max(losses[1:EARLY], default=losses[0]) / losses[0] if losses and losses[0] > 0 else 1.0


def _made_good(m: Measurement) -> bool:
    """Whether the probe learns clearly, and no loss after the first steps comes up to its start again."""
    losses = m.probe.losses
    return learns_clearly(m) and len(losses) > 2 * EARLY and max(losses[EARLY:]) < NOISE * losses[0]
