from gradcheck.analysis.convergence import relative_decrease, training_outcome
from gradcheck.analysis.wording import number, optimizer_in_words, run_in_words
from gradcheck.rules.optimization import at_most_info
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

FEWEST_LOOKS = 2
AMPLE = 0.9  # relative fall of the loss: what has learned so much could stand the rate
# The same where only the first step goes too far. Measured: an MLP of 4 million weights falls by 0.86, at the rate that is advised by 0.45.
AMPLE_AFTER = 0.8
WANTED = 0.25  # of the critical rate: healthy models have 0.02 to 0.3 of it at their usual rates


@rule(
    "OPT007",
    up_to="warning",
    needs=("critical", "probe"),
    limits={
        "share": Limit(1.0, "of the critical rate", "definition; 14 healthy models: at most 0.1 at their usual rates"),
        "first": Limit(4.0, "of the critical rate", "14 healthy models: no training with more at its first step reached a usual loss"),
    },
)
def past_critical_rate(m: Measurement, limits: Limits) -> Verdict:
    """Each step raises the loss of the very batch that it was made for.

    ## What it finds
    Learning rates beyond the critical one, the least at which the loss rises along the optimizer's own update, at all of
    the first steps that were looked at.

    ## Why it matters
    The gradient says nothing any more about where such a step ends: the loss rises, or falls by chance; units die or saturate
    on the way. Close to the critical rate is another matter: training at full batches drives itself to it, and learns
    there (the edge of stability).

    ## How it is measured
    On a copy at the start: the loss of a batch is computed at multiples of the update that your optimizer makes for it, each four
    times or a quarter of the one before, with the same random numbers, until it is above where it started, and once in between. A few
    forward passes and no second derivative. The share is your rate over that of the least such multiple. Where it is beyond 1, it
    is looked at once more after three steps, and the smaller share counts.

    ## Limits and their sources
    `share` 1 (a definition): the loss rises at every look. `first` 4: what the first step alone has to show, since later ones start from
    where it threw the weights. On 14 healthy models (MLPs, ResNet, MLP-Mixer, LSTM, Transformers, GPT-2, BERT, contrastive and
    actor-critic training; AdamW, SGD with momentum) the share at the first step is 0.004 to 0.1, at ten times the usual rate 0.04
    to 0.9 (ResNet, which then learns worse, 1.4), at a hundred times 0.4 to 13; up to 0.9 they still learn at that. All with
    more than 1 at both looks, or more than 4 at the first, ended far above the loss that the usual rate reaches. At the end of a
    training the share says nothing: models thrown into flat places have 0.01.

    ## When to ignore it
    When a schedule warms the rate up and the scan did not see it. Where the loss falls by 90 % anyway, or by 80 % and only the first
    step goes too far, it is advice; so it is where a training at the rate that is advised, from the same start, ends no lower.

    ## Example
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ```

    ## References
    A Scalable Measure of Loss Landscape Curvature for Analyzing the Training Dynamics of LLMs, 2026 (arXiv 2601.16979: critical
    sharpness); Cohen et al. 2021, Gradient descent on neural networks typically occurs at the edge of stability.
    """
    if m.critical is None:
        return not_applicable("the level of the loss says nothing, or the optimizer evaluates it by itself")
    share, first = m.critical.share, m.critical.shares[0]
    limit = limits["share"] if share > limits["share"] else limits["first"]
    if share > limits["share"] and len(m.critical.shares) < FEWEST_LOOKS:
        return not_measured("the training was over before its first steps could be compared")
    only_first = share <= limits["share"]
    share = first if only_first else share  # later ones come from weights that it has already thrown far
    if share <= limit:
        return []
    ample = training_outcome(m) == "learns" and relative_decrease(m.probe, m.chance) >= (AMPLE_AFTER if only_first else AMPLE)
    message = (
        f"the rate is {number(share)} times the critical one (limit {number(limit)}): with {optimizer_in_words(m)} the first steps raise "
        f"the loss of the batch that they are made for, and {run_in_words(m.probe)}"
    )
    rate = float(f"{m.optimizer.lr * WANTED / share:.1g}")
    return [
        found(
            at_most_info(m, "info" if ample else "warning"),
            message,
            location=m.optimizer.site,
            evidence=Evidence("rate over the critical rate", share, limit, ">", "at the first steps"),
            remedies=Remedy("lower-learning-rate", f"set the rate to {number(rate)}, a quarter of the critical one", "safe"),
        )
    ]
