from gradcheck.analysis.wording import number, percent
from gradcheck.rules.numerics import BFLOAT16
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


@rule(
    "NUM004",
    up_to="warning",
    needs=("precision",),
    limits={"flushed": Limit(0.05, "of the gradient entries", "heuristic")},
    explains=("GRAD004", "GRAD001"),
)
def half_underflow(m: Measurement, limits: Limits) -> Verdict:
    """Gradients are too small for float16 and become zero.

    ## What it finds
    Layers that compute in float16 and get gradients of which a good part is exactly 0 only because float16 has no
    smaller number than 6e-8.

    ## Why it matters
    Nothing is learned from what is flushed to zero. Most gradients are small, those of the first layers smallest of all.

    ## How it is measured
    One backward pass from the loss as your training step returns it, and one from the same loss times a power of two of at
    most 32768. Entries that are 0 in the first and not in the second were flushed; zeros of ReLU are 0 in both.

    ## Limits and their sources
    `flushed` 0.05 of all entries of the gradients at the float16 layers' outputs is a warning.

    ## When to ignore it
    When your training loop scales the loss (`GradScaler`) and the scanned training step returns it unscaled.

    ## Example
    ```python
    with torch.autocast("cuda", dtype=torch.float16):
        loss = loss_fn(model(x), y)
    loss.backward()
    ```

    ## Use instead
    ```python
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    ```

    ## References
    Micikevicius et al. 2018, Mixed Precision Training, section 3.2.
    """
    half = m.half
    if half is None:
        reason = next((n.why for n in m.not_measured if n.what == "precision"), None)
        return not_measured(reason) if reason else not_applicable("nothing is computed in float16")
    if half.flushed <= limits["flushed"]:
        return []
    layer = m.layer(half.layer)
    return [
        found(
            "warning",
            f"{percent(half.flushed)} of the gradient entries of float16 layers are flushed to 0 (limit {percent(limits['flushed'])}; "
            f"{percent(half.layer_flushed)} in {half.layer or 'the model'}): with the loss times {number(half.scale)} they are not, and "
            "nothing is learned from what is 0",
            layers=(half.layer,),
            location=layer.site if layer else None,
            evidence=Evidence(
                "gradient entries that are 0 unless the loss is scaled", half.flushed, limits["flushed"], ">", "", half.layer
            ),
            remedies=(Remedy("loss-scaling", f"scale the loss by {number(half.scale)}, or with torch.amp.GradScaler", "safe"), BFLOAT16),
        )
    ]
