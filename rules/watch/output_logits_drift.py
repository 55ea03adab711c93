from gradcheck.analysis.wording import number, quoted
from gradcheck.rules.watch import NOT_WATCHED, grows
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "WATCH004",
    up_to="warning",
    needs=("gauges", "signals"),
    limits={
        "log_z": Limit(100, "", "heuristic: bfloat16 logits of this size are 0.5 apart; measured: at most 18 in healthy runs"),
        "growth": Limit(1.2, "times", "heuristic: over a quarter of the run: what has come to rest is no drift"),
    },
)
def output_logits_drift(m: Measurement, limits: Limits) -> Verdict:
    """The logits of the output drift away from zero.

    ## What it finds
    Output layers before a cross entropy whose log Z, the logarithm of the softmax's denominator, keeps moving away from zero.

    ## Why it matters
    The loss does not change when all logits move by the same amount, so nothing holds them. Far from zero they lose digits: in bfloat16 a
    logit of 100 is one of steps of 0.5, and the loss becomes noise; later it diverges.

    ## How it is measured
    Mean log-sum-exp of up to 256 rows of the output layer at the measured steps, without its sign.

    ## Limits and their sources
    `log-z` (100) together with `growth` (1.2 times over a quarter of the run).

    ## When to ignore it
    When the logits are computed in float32 and the model is meant to be that certain.

    ## Example
    ```python
    loss = F.cross_entropy(logits, y)
    ```

    ## Use instead
    ```python
    loss = F.cross_entropy(logits, y) + 1e-4 * logits.logsumexp(-1).square().mean()
    ```

    ## References
    Chowdhery et al. 2022, PaLM, section 5; Wortsman et al. 2023 (arXiv 2309.14322).
    """
    known = [g for g in m.gauges if g.quantity == "log-z" and g.values]
    if not known:
        return not_applicable(NOT_WATCHED if not m.probe.live else "no output layer before a cross entropy was seen")
    findings = []
    for g in known:
        levels, last = grows(g), g.values[-1]
        growth = levels[1] / levels[0] if levels is not None and levels[0] > 0 else None
        if growth is None or not last > limits["log_z"] or not growth > limits["growth"]:
            continue
        message = (
            f"the output logits of {quoted(g.name)} drift: log Z is {number(last)} (limit {number(limits['log_z'])}) after "
            f"{number(g.values[0])} "
            f"at the start, and {number(growth)} times that of a quarter of the run ago: the loss shows it only when the digits are gone"
        )
        evidence = (
            Evidence("mean log Z", last, limits["log_z"], ">", "", g.name),
            Evidence("growth over a quarter of the run", growth, limits["growth"], ">", "times", g.name),
        )
        remedies = Remedy("z-loss", "add 1e-4 * logits.logsumexp(-1).square().mean() to the loss, or decay the output layer's weights")
        findings.append(found("warning", message, layers=[g.layer], location=g.site, evidence=evidence, remedies=remedies))
    return findings
