from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import learns_clearly, number, optimizer_in_words
from gradcheck.rules.normalization import main_site, norm_names
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


@rule(
    "NORM008",
    up_to="warning",
    needs=("graph", "probe"),
    limits={
        "norms": Limit(11, "normalizations", "six blocks of two, less the first; 4 deep ones trained at 0.003, 10 deep ones did not"),
        "rate": Limit(1e-3, "rate of an adaptive optimizer", "10 blocks at 0.003: loss 1.26 without warm-up, 0.36 with 60 steps of it"),
    },
)
def post_norm_without_warmup(m: Measurement, limits: Limits) -> Verdict:
    """A deep post-norm transformer at full rate from the first step.

    ## What it finds
    Six or more blocks that normalise the sum of bypass and branch, norm(x + f(x)), trained by an adaptive
    optimizer at 0.001 or more that is not warming up.

    ## Why it matters
    In post-norm networks small changes of the weights are amplified from block to block. The first steps of
    Adam, each of full size in every weight, push the model onto a plateau that it does not leave.

    ## How it is measured
    Normalizations that take the sum of a normalised bypass and a branch while nothing else takes that sum, read
    from the autograd graph. In pre-norm networks the sum goes on along the bypass.

    ## Limits and their sources
    `norms` 11 (six blocks of two; the first takes a bypass that is not normalised yet) and `rate` 0.001: a warning;
    advice only when the probe training learns clearly, or with an optimizer that gradcheck assumed. Not for RAdam,
    which warms up by itself, nor for models that were trained before.

    ## When to ignore it
    When a schedule warms the rate up and the scan did not see it.

    ## Example
    ```python
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 4), 8)  # norm_first=False is the default
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    ```

    ## Use instead
    ```python
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 4, norm_first=True), 8)
    ```

    ## References
    Xiong et al. 2020, On Layer Normalization in the Transformer Architecture; Liu et al. 2020, Understanding the
    Difficulty of Training Transformers.
    """
    norms = [n for n in m.norms if n.added]
    if len(norm_names(norms)) < limits["norms"]:
        return not_applicable(f"fewer than {number(limits['norms'])} normalizations of a sum (post-norm)")
    if m.pretrained:
        return not_applicable("the model was trained before")
    o = m.optimizer
    if not o.adaptive or o.lr < limits["rate"] or o.warming_up or o.name == "RAdam":
        return []
    if training_outcome(m) == "unknown":
        return not_measured("the probe training is too short to say whether it learns")
    mild = learns_clearly(m) or not o.given
    means = "the probe training learns anyway" if learns_clearly(m) else "the first steps may throw it onto a plateau"
    message = (
        f"{len(norm_names(norms))} normalizations take the sum of bypass and branch (post-norm; limit {number(limits['norms'])}), and "
        f"{optimizer_in_words(m)} (limit {number(limits['rate'])}) starts without warm-up: {means}"
    )
    warm = Remedy("warm-up", "raise the rate linearly from 0 over the first few hundred steps, up to a tenth of the run", "advice")
    pre = Remedy("pre-norm", "normalise the branch's input instead of the sum (norm_first=True), with one more norm at the end", "unsafe")
    evidence = (
        Evidence("post-norm normalizations", float(len(norm_names(norms))), limits["norms"], ">=", "", norms[0].layer),
        Evidence("rate", o.lr, limits["rate"], ">=", ""),
    )
    place, severity = main_site(norms), "info" if mild else "warning"
    return [found(severity, message, layers=norm_names(norms), location=place, evidence=evidence, remedies=(warm, pre))]  # type: ignore[arg-type]
