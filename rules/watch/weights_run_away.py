from gradcheck.analysis.wording import number, quoted
from gradcheck.rules.watch import others, runaways
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limit, Limits, Verdict, found, rule


@rule(
    "WATCH006",
    up_to="warning",
    needs=("parameters", "gauges"),
    limits={
        "growth": Limit(3, "times", "measured: healthy tensors grow by at most 2.1 in a third of 1000 steps; runaways by 2.8 to 3.8"),
        "steps": Limit(300, "steps", "heuristic: weights leave their start in the first ones"),
        "looks": Limit(9, "measured steps", "heuristic: three in each third"),
    },
    explains=("WATCH003", "WATCH004", "WATCH007", "LOG002", "LOG003"),
)
def weights_run_away(m: Measurement, limits: Limits) -> Verdict:
    """The norm of a tensor grows faster and faster.

    ## What it finds
    Weight matrices, embeddings and gains whose norm at least triples in the last third of the run, by a larger factor than in the
    third before.

    ## Why it matters
    Weights grow in any training, but more and more slowly: steps of equal size add up along a walk. Growth that gains speed is fed by
    itself: larger weights make larger activations, these larger gradients. Logits, attention and the residual stream follow; the
    loss shows it last.

    ## How it is measured
    From the norm of each tensor at the measured steps: medians at both ends of the last two thirds of the run. Biases, and what starts at
    zero, have no size to grow from and are left out.

    ## Limits and their sources
    `growth` (3 times), of `steps` (300) and `looks` (9 measured steps) or more.

    ## When to ignore it
    When a tensor that was frozen is released in the middle of the run.

    ## Example
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    ```

    ## References
    Kosson, Messmer and Jaggi 2024, Rotational equilibrium (arXiv 2305.17212); Takase et al. 2023, Spike no more (arXiv 2312.16903).
    """
    judged = (p for p in m.parameters if p.trainable and not _is_bias(p))
    bad = runaways(m, limits, "weights", ((p, ((s.step, s.norm) for s in p.steps)) for p in judged))
    return [_finding(m, bad, limits)] if bad else []


def _is_bias(p: Parameter) -> bool:
    """Or starts at zero like one."""
    return len(p.shape) < 2 and (p.std == 0 == p.mean or p.name.endswith("bias"))


def _finding(m: Measurement, bad: list[tuple[Parameter, float, float]], limits: Limits) -> Finding:
    worst, before, last = max(bad, key=lambda b: b[2])
    decay = "without weight decay" if not worst.weight_decay else f"in spite of a weight decay of {number(worst.weight_decay)}"
    message = (
        f"the norm of {quoted(worst.name)} has grown {number(last)} times in the last third of the run (limit "
        f"{number(limits['growth'])}), after "
        f"{number(before)} times in the third before, to {number(worst.steps[-1].norm)}, {decay}{others(len(bad) - 1)}: growth that gains "
        "speed ends in a divergence, and the loss shows it last"
    )
    return found(
        "warning",
        message,
        layers=list(dict.fromkeys(p.layer for p, *_ in bad)),
        location=next((x.site for x in m.layers if x.name == worst.layer), None),
        evidence=[
            Evidence("growth of the norm in the last third", last, limits["growth"], ">", "times", worst.name),
            Evidence("growth in the third before", before, None, "=", "times", worst.name),
        ],
        remedies=Remedy("lower-learning-rate", f"lower the rate from {number(m.optimizer.lr)}, or decay the weights"),
    )
