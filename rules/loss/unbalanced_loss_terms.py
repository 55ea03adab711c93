from gradcheck.analysis.wording import number
from gradcheck.types.checks import LossTerm
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

_MEASURED = "measured on 16 healthy autoencoders and 8 that collapse, see the page"


@rule(
    "LOSS010",
    up_to="warning",
    needs=("balance", "probe"),
    limits={
        "weights": Limit(10.0, "ratio of weights per entry", "heuristic: a beta of 4 is on purpose; " + _MEASURED),
        "gradients": Limit(5.0, "ratio of gradient norms", "measured: 7.6 and up where the code collapses; " + _MEASURED),
        "spread": Limit(0.5, "of the spread before training", _MEASURED),
    },
    explains=("ACT004",),
)
def unbalanced_loss_terms(m: Measurement, limits: Limits) -> Verdict:
    """One term of the loss is summed, another averaged, and the summed one leaves nothing to learn from the other.

    ## What it finds
    Losses in which each entry of one term weighs many times what an entry of another one does, because the one is summed and
    the other averaged: the KL divergence of a variational autoencoder, summed, beside a reconstruction error that is a mean
    over all pixels; a summed penalty on codes beside a mean error.

    ## Why it matters
    The summed term wins: it is least where the code says nothing about its input, and the code goes there within the first
    hundred steps (posterior collapse). The loss falls and stays, and what is decoded is the mean of the data.

    ## How it is measured
    The loss is taken apart, call by call, down to the sums and means that make numbers of many entries; the factor of each gives
    the weight of one entry. The heaviest of those that are no comparison with data (penalties, divergences) is compared with the
    comparison with data beside it that counts most as a whole. A finding needs three things: the weights differ, so do the
    gradients in the weights that both train (before training or after the probe), and after the probe what the heavy term is made
    of (means and log variances, codes) varies less from sample to sample than before training.

    ## Limits and their sources
    `weights` 10 and `gradients` 5; `spread` 0.5 of that before training. Calibration on digits (64 pixels, Adam or SGD): of 16
    healthy autoencoders (sum beside sum, batch means of sums, beta 0.1 to 4, annealed beta, weights such as 0.00025, free bits,
    sparse codes, total variation, decorrelation) none is reported. Seven with a summed divergence beside a mean error all end
    at the error of the data's mean; their ratios of weights are 32 to 2050, of gradients 15 to 7700, and the spread is 0.08 to
    0.35 after 100 steps. An eighth, with too strong a penalty on its codes, has a ratio of 6 and is missed. Held out: five
    healthy trainings (convolutions, a small and a growing weight, boxes beside classes, squared weights) are not reported; five
    that collapse (convolutions, divergences of torch, a bottleneck before a classifier, codes) are, with ratios of gradients of
    7.6 and up. By `benchmarks/silent.py`, over sizes, optimizers and two data sets: of 24 healthy autoencoders none is reported,
    of 12 that collapse all are.

    ## When to ignore it
    When so strong a penalty is meant.

    ## Example
    ```python
    reconstruction = F.mse_loss(decoded, x)
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    loss = reconstruction + divergence
    ```

    ## Use instead
    ```python
    reconstruction = F.mse_loss(decoded, x, reduction="sum")
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    loss = (reconstruction + divergence) / len(x)
    ```

    ## References
    Kingma and Welling 2014, Auto-encoding variational Bayes, appendix B; Bowman et al. 2016, Generating sentences from a
    continuous space (collapse); zdebruine/MMVAE#19 and keras-team/keras#3383 (mean error beside a summed divergence).
    """
    pair = m.imbalance
    if not m.loss_given and pair is None:
        return not_applicable("the loss is gradcheck's own")
    if pair is None or pair.ratio < limits["weights"] or pair.gradients < limits["gradients"] or pair.spread > limits["spread"]:
        return []
    strong, weak = pair.strong, pair.weak
    message = (
        f"an entry of {_term(strong)} weighs {number(pair.ratio)} times what one of {_term(weak)} does (limit "
        f"{number(limits['weights'])}), and its gradient is {number(pair.gradients)} times as large (limit {number(limits['gradients'])}): "
        f"what it is made of varies over the samples {number(pair.spread)} times what it did before training (limit "
        f"{number(limits['spread'])}), and the other term learns nothing from it"
    )
    evidence = [
        Evidence("weight of an entry", pair.ratio, limits["weights"], ">=", "times that of the other term"),
        Evidence("gradient", pair.gradients, limits["gradients"], ">=", "times that of the other term"),
        Evidence("spread over the samples", pair.spread, limits["spread"], "<=", "of that before training"),
    ]
    cure = Remedy("average-term", "average this term over its entries, or sum both", "unsafe")
    findings: list[Finding] = [found("warning", message, location=strong.site, evidence=evidence, remedies=cure)]
    return findings


def _term(term: LossTerm) -> str:
    place = f" in line {term.site.line}" if term.site is not None else ""
    return f"{term.operation}{place} over {list(term.shape)} ({number(term.weight)} each)"
