from gradcheck.analysis.update_sizes import decay_matters
from gradcheck.analysis.wording import number
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

COUPLED = ("Adam", "NAdam", "RAdam", "RMSprop", "Adamax")


@rule("OPT004", up_to="info", needs=("optimizer",), limits={"least": Limit(0.0, "weight decay", "any decay inside the moments is coupled")})
def coupled_weight_decay(m: Measurement, limits: Limits) -> Verdict:
    """Weight decay passes through the moments of an adaptive optimizer, and hardly decays anything.

    ## What it finds
    Adam, NAdam, RAdam, Adamax and RMSprop with weight decay that is added to the gradient.

    ## Why it matters
    The decay is divided by the root of the mean squared gradient like everything else: weights with large gradients
    are decayed less than those with small ones, and the strength no longer follows the setting. In the
    decoupled variants it does; each at its own best strength, they generalise better (Loshchilov and Hutter 2019).

    ## How it is measured
    The optimizer's class and the settings of its parameter groups.

    ## Limits and their sources
    Decay above `least` 0 that adds at least a hundredth to some parameter's gradient. Loshchilov and Hutter 2019.

    ## When to ignore it
    When a published recipe asks for it, or the strength was tuned this way.

    ## Example
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.01)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    ```

    ## References
    Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization.
    """
    o = m.optimizer
    if not o.given or o.name not in COUPLED:
        return not_applicable("the optimizer does not couple weight decay with its moments, or was assumed")
    decayed = [p for p in m.parameters if p.weight_decay > 0]
    if o.decoupled or o.weight_decay <= limits["least"] or (decayed and not any(decay_matters(m, p) for p in decayed)):
        return []
    message = (
        f"weight decay {number(o.weight_decay)} is added to the gradient inside {o.name}, whose moments divide it away: "
        "weights with large gradients are hardly decayed"
    )
    other = {"Adam": "AdamW", "NAdam": "NAdam(decoupled_weight_decay=True)", "RAdam": "RAdam(decoupled_weight_decay=True)"}.get(
        o.name, "AdamW"
    )
    evidence = Evidence("coupled weight decay", o.weight_decay, limits["least"], ">")
    remedy = Remedy("decoupled-weight-decay", f"use {other} with the same rate, and tune the decay again from 0.01", "advice")
    return [found("info", message, location=o.site, evidence=evidence, remedies=remedy)]
