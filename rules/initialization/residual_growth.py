from statistics import fmean

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import layers_in_words, number
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule
from gradcheck.types.structure import Stream


@rule(
    "INIT003",
    up_to="warning",
    needs=("graph", "losses", "probe"),
    limits={
        "growth": Limit(10.0, "times", "10 residual blocks without normalization: initial loss 9.4 times chance, accuracy 0.71"),
        "ratio": Limit(2.0, "branch over bypass", "heuristic; a branch as large as the bypass doubles the power at each sum"),
        "later_ratio": Limit(
            0.25, "branch over bypass", "tenfold growth over 40 sums takes 0.35 at each; branches of one size fall as 1 / sum"
        ),
        "sums": Limit(3, "sums", "heuristic: two sums are no depth"),
        "initial_loss": Limit(3.0, "times chance", "67 % of random networks beyond it fail with Adam at 0.001; healthy ones reach 1.54"),
    },
    explains=("LOSS003",),
)
def residual_growth(m: Measurement, limits: Limits) -> Verdict:
    """Residual branches too large for the depth: the stream grows at each sum, and nothing normalises it.

    ## What it finds
    Networks of three or more residual sums in a row whose stream grows tenfold from first to last, or whose
    branches are twice as large as the bypass, without a normalization of the last sum.

    ## Why it matters
    The output and the gradient grow with the stream. The last blocks drown out the first ones, the first loss is
    many times that of a guess, and a rate that suits the last layer is too high for the others.

    ## How it is measured
    Root mean square of bypass, branch and sum at each sum of two activations of the model in the first step,
    where one of the two goes around the other. Sums follow each other when one is the bypass of the next.

    ## Limits and their sources
    `growth` 10 times or a mean `ratio` of 2, over at least `sums` 3, with a mean ratio above `later-ratio` 0.25 in the
    second half: a warning together with an initial loss above `initial-loss` 3 times chance, or with a probe
    training that does not learn; else advice. Branches of one size, as normalised ones are, fall behind the
    stream; in pre-norm networks growth with the root of the depth is normal, and the final norm undoes it.

    ## When to ignore it
    When the branches shrink during a warm-up that the scan did not see.

    ## Example
    ```python
    for block in self.blocks:  # 24 of them, He initialisation, no normalization
        x = x + block(x)
    ```

    ## Use instead
    ```python
    for block in self.blocks:
        x = x + block(x) / math.sqrt(len(self.blocks))
    ```

    ## References
    Zhang et al. 2019, Fixup Initialization; De and Smith 2020, Batch Normalization Biases Residual Blocks.
    """
    if m.pretrained:
        return not_applicable("the model was trained before: its weights were learned")
    streams = [s for s in m.streams if len(s.ratios) >= limits["sums"] and not s.normalized]
    if not streams:
        return not_applicable(f"no residual stream of {number(limits['sums'])} sums that ends without normalization")
    growing = [s for s in streams if _grows(s, limits)]
    return [_finding(m, max(growing, key=lambda s: s.end / s.start), limits)] if growing else []


def _grows(s: Stream, limits: Limits) -> bool:
    """Whether it keeps growing: branches of constant size, such as normalised ones, fall behind the stream."""
    later = fmean(s.ratios[len(s.ratios) // 2 :])
    return later > limits["later_ratio"] and (s.end / s.start > limits["growth"] or fmean(s.ratios) > limits["ratio"])


def _shown(m: Measurement, limits: Limits) -> tuple[Severity, str]:
    """Severity, and what the growth does to the training."""
    start = m.probe.losses[0] / m.chance if m.chance and m.chance > 0 and m.probe.losses else None
    if start is not None and start > limits["initial_loss"]:
        return "warning", f"the first loss is {number(start)} times that of a constant prediction (limit {number(limits['initial_loss'])})"
    if training_outcome(m) in ("stalls", "diverges"):
        return "warning", "the probe training does not learn"
    return "info", "the probe training is not affected"


def _finding(m: Measurement, s: Stream, limits: Limits) -> Finding:
    growth, ratio, sums = s.end / s.start, fmean(s.ratios), len(s.ratios)
    severity, means = _shown(m, limits)
    message = (
        f"the residual stream through {layers_in_words(s.layers)} grows {number(growth)} times over {sums} sums "
        f"(limit {number(limits['growth'])}), the branches {number(ratio)} times as large as the bypass (limit {number(limits['ratio'])}), "
        f"with no normalization at its end: {means}"
    )
    text = f"multiply the last weights of each of the {sums} branches by {number(sums**-0.5)} = 1 / sqrt({sums})"
    scale = Remedy("residual-scaling", text, "safe")
    zero = Remedy("zero-branch-init", "start the last layer of each branch at zero (Fixup, SkipInit)", "safe")
    norm = Remedy("insert-normalization", "normalise the input of each branch, and the last sum", "unsafe")
    evidence = (
        Evidence("growth of the stream", growth, limits["growth"], ">", "times", s.layers[0] or None),
        Evidence("branch over bypass", ratio, limits["ratio"], ">", "times", s.layers[0] or None),
    )
    layers = tuple(dict.fromkeys(s.layers))
    return found(severity, message, layers=layers, location=s.site, evidence=evidence, remedies=(zero, scale, norm))
