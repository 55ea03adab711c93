from gradcheck.analysis.convergence import relative_decrease, training_outcome
from gradcheck.analysis.layer_groups import by_site, gate_makers, names
from gradcheck.analysis.wording import also_in, number, percent, quoted
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Dormancy, Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

FEWEST_UNITS = 8  # of fewer, half are few enough to be chance
MOSTLY = 0.5  # of the dormant units: dead ones are told by dead-units, which knows how many of them are usual
AMPLE = 0.9  # relative fall of the loss: what has learned so much did not lack the units


@rule(
    "ACT007",
    up_to="warning",
    needs=("units", "graph", "probe"),
    limits={
        "share": Limit(0.5, "of the units", "healthy trained networks: at most 0.08; those that a rate of 0.1 with Adam broke: 0.5 to 1"),
        "growth": Limit(0.25, "of the units", "healthy networks: at most 0.06; positions and gates that are small by design do not grow"),
        "samples": Limit(64, "samples x positions", "as many show dead-units that more than 80 % of the units are dead"),
        "batches": Limit(2, "batches", "a unit may have nothing to do in one batch"),
    },
)
def dormant_units(m: Measurement, limits: Limits) -> Verdict:
    """Units of any activation that output next to nothing, more and more of them as training goes on.

    ## What it finds
    Activations (GELU, SiLU, sigmoid, tanh, softplus, ReLU, ...) half of whose units have come to output, on average over all
    samples and positions, at most 0.025 of the mean over the layer's units.

    ## Why it matters
    The layer computes with the units that are left: the model has become a narrower one. Unlike with dead units a gradient still
    gets through, but next to none, and they seldom come back. Too high a learning rate makes them, and so does training on
    targets that move, as in reinforcement learning.

    ## How it is measured
    Mean magnitude of each unit (channel) over an even sample of up to 2048 positions of each of the last four measured steps, divided by
    the mean over the layer's units: the score of Sokar et al., dormant at 0.025 or less. The same at the first two measured steps
    gives the growth. Sigmoid gates, and what feeds them, are exempt. Layers most of whose dormant units are dead are left to `dead-units`.

    ## Limits and their sources
    `share` 50 % and `growth` 25 % of the units. After 60 to 100 steps 20 healthy models of the zoo (BERT- and GPT-like, convolutional,
    mixtures of experts, MLPs) have at most 8 %, and at most 6 % more than at the start; so have MLPs of nine activations at rates of
    0.001 and 0.01. At a rate of 0.1 with Adam GELU, SiLU, Mish and sigmoid have 50 to 98 % in some layer and reach losses of 0.5 to 1.6,
    where 0.003 reaches 0. ReLU with 78 % and softplus with 73 % reached 0: hence advice where the loss has fallen by 90 %.
    `samples` 64 in `batches` 2. A healthy BYOL has 59 % in its predictor, three quarters of them dead.

    ## When to ignore it
    In pruned models, and where a layer is meant to use few units at a time.

    ## Example
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ```

    ## References
    Sokar, Agarwal, Castro and Evci 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning (arXiv 2302.12902).
    """
    aside = gate_makers(m)
    every = [(x, x.dormancy) for x in m.of_kind("activation") if x.dormancy is not None and not x.gate and x.name not in aside]
    layers = [(x, d) for x, d in every if d.units >= FEWEST_UNITS]
    if not layers:
        return not_applicable(f"no activation with {FEWEST_UNITS} or more units")
    judged = [(x, d) for x, d in layers if d.samples >= limits["samples"] and d.batches >= limits["batches"]]
    if not judged:
        most = max(d.samples for _, d in layers)
        return not_measured(
            f"{most} samples x positions are too few to call a unit dormant (needed: {number(limits['samples'])} in two batches)"
        )
    faulty = [x for x, d in judged if _is_faulty(d, limits) and (x.dead_units or 0) < MOSTLY * d.dormant]
    return [_finding(m, group, limits) for group in by_site(faulty)]


def _is_faulty(d: Dormancy, limits: Limits) -> bool:
    return d.dormant >= limits["share"] * d.units and d.dormant - d.at_start >= limits["growth"] * d.units


def _share(x: Layer) -> float:
    return x.dormancy.dormant / x.dormancy.units if x.dormancy is not None else 0.0


def _finding(m: Measurement, group: list[Layer], limits: Limits) -> Finding:
    worst = max(group, key=_share)
    d, share = worst.dormancy, _share(worst)
    assert d is not None
    learned = training_outcome(m) == "learns" and relative_decrease(m.probe, m.chance) >= AMPLE
    dead = f", {worst.dead_units} of them never active" if worst.dead_units else ""
    message = (
        f"{d.dormant} of {d.units} units ({percent(share)}; limit {percent(limits['share'])}) of {quoted(worst.name)} give at most "
        "0.025 of what a "
        f"unit of the layer gives on average{dead}; {d.at_start} did at the start: the model works with the others{also_in(group)}"
    )
    lower = f"lower the learning rate from {number(m.optimizer.lr)} to {number(m.optimizer.lr / 10)}, or warm it up"
    return found(
        "info" if learned else "warning",
        message,
        layers=names(group),
        location=worst.site,
        evidence=[
            Evidence("dormant units", share, limits["share"], ">=", "of the units", worst.name),
            Evidence("dormant units at the start", d.at_start / d.units, None, "=", "of the units", worst.name),
        ],
        remedies=Remedy("lower-learning-rate", lower, "safe"),
    )
