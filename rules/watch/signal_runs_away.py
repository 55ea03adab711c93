from gradcheck.analysis.wording import number, quoted
from gradcheck.rules.watch import others, runaways
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, rule


@rule(
    "WATCH007",
    up_to="warning",
    needs=("signals", "gauges"),
    limits={
        "growth": Limit(4, "times", "measured: no layer of 9 healthy runs of 2000 steps reaches 3; runaways 3.5 to 4.1 and more"),
        "steps": Limit(300, "steps", "heuristic: as weights-run-away"),
        "looks": Limit(9, "measured steps", "heuristic: three in each third"),
    },
    explains=("WATCH004", "LOG002", "LOG003"),
)
def signal_runs_away(m: Measurement, limits: Limits) -> Verdict:
    """The output of a layer grows faster and faster over the run.

    ## What it finds
    Layers, blocks of a residual stream among them, whose output at least quadruples in size in the last third of the run, and grew less in
    the third before. It names the first one, and how far the growth goes on over depth.

    ## Why it matters
    A signal that gains speed leaves the range in which the layers after it work: normalizations hide it, half precision does not.
    Massive activations, and logits that diverge, begin so.

    ## How it is measured
    From the root mean square of each layer's output at the measured steps: medians at the ends of the last two thirds of the run.

    ## Limits and their sources
    `growth` (4 times), of `steps` (300) and `looks` (9 measured steps) or more.

    ## When to ignore it
    When the data change in the middle of the run.

    ## Example
    ```python
    x = x + self.mlp(self.norm(x))
    ```

    ## Use instead
    ```python
    x = x + self.scale * self.mlp(self.norm(x))  # a scale per channel that starts small; or a lower rate
    ```

    ## References
    Sun et al. 2024, Massive activations in large language models (arXiv 2402.17762); Takase et al. 2023, Spike no more (arXiv
    2312.16903).
    """
    layers = (x for x in m.layers if x.kind not in ("softmax", "dropout"))
    bad = runaways(m, limits, "signals", ((x, ((s.step, s.output.rms) for s in x.snapshots if s.output is not None)) for x in layers))
    return [_finding(m, bad, limits)] if bad else []


def _finding(m: Measurement, bad: list[tuple[Layer, float, float]], limits: Limits) -> Finding:
    first, before, last = min(bad, key=lambda b: b[0].order)
    largest, _, most = max(bad, key=lambda b: b[2])
    further = f", and most in {quoted(largest.name)} ({number(most)} times)" if largest is not first else ""
    message = (
        f"the output of {quoted(first.name)} has grown {number(last)} times in the last third of the run (limit "
        f"{number(limits['growth'])}), after {number(before)} times in the third before{further}{others(len(bad) - 1, 'layer')}: what "
        "follows leaves its range before the loss shows it"
    )
    return found(
        "warning",
        message,
        layers=list(dict.fromkeys(x.name for x, *_ in bad)),
        location=first.site,
        evidence=[
            Evidence("growth of the output in the last third", last, limits["growth"], ">", "times", first.name),
            Evidence("growth in the third before", before, None, "=", "times", first.name),
        ],
        remedies=Remedy("lower-learning-rate", f"lower the rate from {number(m.optimizer.lr)}, or decay the weights"),
    )
