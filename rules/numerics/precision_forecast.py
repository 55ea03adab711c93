from collections.abc import Mapping

from gradcheck.analysis.number_formats import BY_NAME, KINDS, Format, Lost, What, loss_scale_exponent, lost, measured
from gradcheck.analysis.wording import percent, quoted
from gradcheck.rules.numerics import BFLOAT16
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import NO_SCALER
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

FP8_LAYERS = ("Float8", "MX")  # how classes of layers that compute in 8 bits begin (torchao)
CLASSIFIES = ("cross_entropy", "nll_loss")
LAST = 10  # losses at the end of the short training


@rule(
    "NUM006",
    up_to="info",
    needs=("signals", "parameters", "losses", "probe"),
    wants=("loop",),
    limits={
        "under": Limit(
            0.05, "of the entries that are not 0", "as for half-underflow; 12 healthy models: 0 in fp16 and fp8, at most 0.044 in MXFP8"
        ),
        "over": Limit(0.0, "of the entries", "a matter of definition: one infinity makes the loss NaN"),
        "zero_losses": Limit(0.5, "of the last 10 losses", "definition: most steps have a gradient of exactly 0"),
    },
)
def precision_forecast(m: Measurement, limits: Limits) -> Verdict:
    """Activations, gradients or weights that the narrow format which training is set up for could not hold.

    ## What it finds
    Layers whose outputs would overflow, or a good part of whose outputs, gradients or weights would become 0, in float16, fp8 or
    MXFP8: where training is set up for that format but was measured in a wider one, as a script with a `GradScaler` on a machine
    without GPU. And softmax collapse: a cross entropy of exactly 0, since the largest logit absorbs all others.
    `--profile` shows a table of the shares in bf16, fp16, fp8 and MXFP8 for any model.

    ## Why it matters
    What overflows makes the loss NaN, or costs the scaler a step; from what becomes 0 nothing is learned. A loss of exactly 0 has a
    gradient of exactly 0: training stands still, whatever accuracy has been reached.

    ## How it is measured
    Exponents of samples of up to 4096 entries of each output and its gradient at the last measured step, and of each weight. In fp16
    gradients are counted after the largest loss scale at which none overflows. E4M3 and E5M2: with a factor for each tensor that
    brings its largest entry to the top of the format; fp8 training keeps gradients in E5M2, the rest in E4M3. MXFP8 (E4M3 in
    blocks of 32): with such a factor for each block, whose largest entry is taken to be that of 32 drawn at random from the
    tensor.

    ## Limits and their sources
    `under` 5 % of the entries that are not 0, `over` 0, `zero-losses` half of the last ten. Calibrated on 12 healthy models
    after 30 steps (MLPs, LSTM, ResNet, MLP-Mixer, Transformers, GPT-2, BERT, contrastive, recommender, actor-critic): bf16 and fp16
    hold everything, E5M2 all gradients, E4M3 all but 0.1 % of activations and weights; MXFP8 loses at most 4.4 % (gradients of the
    head of a ResNet), under 0.3 % elsewhere.

    ## When to ignore it
    When the layers in question are kept in a wider format, as autocast does with softmax and losses.

    ## Example
    ```python
    with torch.autocast("cuda", dtype=torch.float16):
        loss = loss_fn(1000 * model(x), y)
    ```

    ## Use instead
    ```python
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = loss_fn(model(x), y)
    ```

    ## References
    Micikevicius et al. 2022, FP8 Formats for Deep Learning; Rouhani et al. 2023, Microscaling Data Formats for Deep Learning; Prieto et
    al. 2025, Grokking at the Edge of Numerical Stability (softmax collapse).
    """
    setups = _set_up_for(m)
    collapsed = _collapsed(m, limits["zero_losses"])
    if not setups and not collapsed:
        wide = any(c.function in CLASSIFIES for c in m.losses)
        return [] if wide else not_applicable("training is set up for no narrower format, and its loss is no cross entropy")
    return [*collapsed, *(f for setup in setups for f in _forecast(m, setup, limits))]


# What is kept in which format where training is set up for one; beside fp16 the weights stay in float32.
SETUPS: Mapping[str, Mapping[What, Format]] = {
    "fp16": {"activations": BY_NAME["fp16"], "gradients": BY_NAME["fp16"]},
    "fp8": {"activations": BY_NAME["E4M3"], "gradients": BY_NAME["E5M2"], "weights": BY_NAME["E4M3"]},
    "MXFP8": dict.fromkeys(KINDS, BY_NAME["MXFP8"]),
}


def _set_up_for(m: Measurement) -> list[str]:
    scaler = m.loop.scaler if m.loop is not None else None
    types = [x.type for x in m.layers]
    asked = {
        "fp16": scaler is not None and scaler != NO_SCALER,
        "fp8": any(t.startswith(FP8_LAYERS[0]) for t in types),
        "MXFP8": any(t.startswith(FP8_LAYERS[1]) and t.endswith("Linear") for t in types),
    }
    return [name for name, yes in asked.items() if yes]


def _forecast(m: Measurement, setup: str, limits: Limits) -> list[Finding]:
    """The worst layer of each kind: what overflows, and what becomes 0."""
    kinds = measured(m)
    findings = []
    for what, form in SETUPS[setup].items():
        layers = kinds[what]
        scale = loss_scale_exponent(layers, form) if what == "gradients" and not form.scaled else 0
        shares = {name: lost(e, form, scale) for name, e in layers.items()}
        over = max(shares, key=lambda name: shares[name].over, default=None)
        if over is not None and shares[over].over > limits["over"]:
            findings.append(_finding(m, form, what, over, shares, "over", limits["over"]))
        under = max(shares, key=lambda name: shares[name].under, default=None)
        if under is not None and shares[under].under > limits["under"]:
            findings.append(_finding(m, form, what, under, shares, "under", limits["under"]))
    return findings


def _finding(m: Measurement, form: Format, what: What, name: str, shares: dict[str, Lost], side: str, limit: float) -> Finding:
    parameter = m.parameter(name) if what == "weights" else None
    owner = parameter.layer if parameter is not None else name
    layer = m.layer(owner)
    share = shares[name].over if side == "over" else shares[name].under
    fate = "would be beyond its largest number" if side == "over" else "would become 0"
    message = f"training is set up for {form.name}: {percent(share)} of the {what} of {quoted(name)} {fate} (limit {percent(limit)})"
    cure = BFLOAT16 if form.name == "fp16" else Remedy("float32-region", f"keep {quoted(owner)} in a wider format", "advice")
    return found(
        "info",
        message,
        layers=[owner],
        location=layer.site if layer is not None else None,
        evidence=Evidence(f"{what} that {form.name} cannot hold", share, limit, ">", "of the entries", owner),
        remedies=cure,
    )


def _collapsed(m: Measurement, limit: float) -> list[Finding]:
    call = next((c for c in m.losses if c.function in CLASSIFIES), None)
    last = m.probe.losses[-LAST:]
    share = sum(x == 0 for x in last) / len(last) if last else 0.0
    if call is None or m.probe.surrogate or share < limit:
        return []
    message = (
        f"softmax collapse: {percent(share)} of the last {len(last)} losses are exactly 0 (limit {percent(limit)}): the "
        "largest logit absorbs all others in the sum, and the gradient is exactly 0"
    )
    text = "smooth the labels (label_smoothing=0.1), decay the weights, or compute the loss in float64"
    evidence = Evidence("losses that are exactly 0", share, limit, ">=", f"of the last {len(last)}")
    return [found("info", message, location=call.site, evidence=evidence, remedies=Remedy("label-smoothing", text))]
