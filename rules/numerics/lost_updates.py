from collections.abc import Sequence
from statistics import median

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import layers_in_words, learns_clearly, number, optimizer_in_words, percent
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

HALVES = ("float16", "bfloat16")
BITS = {"float16": 11, "bfloat16": 8}  # of the significand


@rule(
    "NUM005",
    up_to="warning",
    needs=("parameters", "probe"),
    limits={
        "unchanged": Limit(0.5, "of the entries", "heuristic: bfloat16 keeps 8 bits, so that a change below 1/512 of a weight is lost"),
        "unchanged_learning": Limit(0.6, "of the entries", "measured: from here on 5 times the loss of a float32 twin, see the page"),
    },
    explains=("OPT002", "LOSS005"),
)
def lost_updates(m: Measurement, limits: Limits) -> Verdict:
    """The optimizer's changes are smaller than bfloat16 or float16 weights can represent.

    ## What it finds
    Parameters stored in half precision of which most entries have a gradient and stay exactly as they were in an optimizer
    step.

    ## Why it matters
    A bfloat16 number has 8 significant bits: what changes a weight by less than 1/512 of its size rounds to no change,
    step after step. Training slows down or stops although the loss could still fall.

    ## How it is measured
    At the measured steps: the share of entries (of a sample in large parameters) with a gradient that is not zero and a value that
    the step left unchanged. The median over steps, averaged over the parameters by their size.

    ## Limits and their sources
    Above `unchanged` 0.5 it is a warning; when the probe learns clearly, or was too short to tell, from `unchanged-learning` 0.6 on,
    and advice below. Measured on a regression of 4 inputs by a residual net in bfloat16, with AdamW: at rates whose steps leave 0.6
    to 0.8 unchanged the loss after 1500 steps is 5 times that of a float32 twin, although the first 300 hardly differ; where 0.4
    stay, 1.6 times.

    ## When to ignore it
    When the optimizer rounds stochastically, or keeps the lost part (Kahan summation).

    ## Example
    ```python
    model = Net().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ```

    ## Use instead
    ```python
    model = Net()  # float32 weights
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = loss_fn(model(x), y)
    ```

    ## References
    Micikevicius et al. 2018, section 3.1; Zamirai et al. 2020, Revisiting BFloat16 Training.
    """
    halves = [p for p in m.parameters if p.dtype in HALVES and p.trainable and p.groups]
    if not halves:
        return not_applicable("no trainable parameter is stored in half precision")
    shares = {p.name: share for p in halves if (share := unchanged(p)) is not None}
    if not shares:
        return not_measured("no step of the optimizer was measured")
    known = [p for p in halves if p.name in shares]
    total = sum(p.count for p in known)
    share = sum(shares[p.name] * p.count for p in known) / total
    unopposed = learns_clearly(m) or training_outcome(m) == "unknown"
    if share <= limits["unchanged"]:
        return []
    severity: Severity = "info" if unopposed and share <= limits["unchanged_learning"] else "warning"
    return [_lost(m, known, share, limits["unchanged"], severity)]


def unchanged(p: Parameter) -> float | None:
    """Median over the measured steps."""
    known = [s.unchanged for s in p.steps if s.unchanged is not None]
    return median(known) if known else None


def _lost(m: Measurement, parameters: Sequence[Parameter], share: float, limit: float, severity: Severity) -> Finding:
    dtype = parameters[0].dtype
    layers = list(dict.fromkeys(p.layer for p in parameters))
    return found(
        severity,
        f"{percent(share)} of the {dtype} weights of {layers_in_words(layers)} stay as they are in a step of {optimizer_in_words(m)} "
        f"(limit {percent(limit)}), although they have a gradient: changes below 2^-{BITS[dtype] + 1} of a weight are lost in rounding",
        layers=layers,
        location=m.optimizer.site,
        evidence=Evidence("weights with a gradient that a step leaves unchanged", share, limit, ">"),
        remedies=(
            Remedy("float32-weights", f"keep the weights in float32 and compute in {dtype} under torch.autocast", "safe"),
            Remedy("raise-learning-rate", f"or raise the rate from {number(m.optimizer.lr)}, if the training allows it", "advice"),
        ),
    )
