"""NUM003 to NUM005: what float16 and bfloat16 cannot hold."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import BY_VALUE, layers_in_words, learns_clearly, number, optimizer_in_words, percent
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradcheck.types.measurement import Layer, Measurement, NonFinite, Parameter, TensorStats

LARGEST = 65504.0  # the largest float16
HALVES = ("float16", "bfloat16")
BITS = {"float16": 11, "bfloat16": 8}  # of the significand
BFLOAT16 = Remedy(
    "bfloat16", "compute in torch.bfloat16, whose range is that of float32: dtype=torch.bfloat16 in autocast, no loss scaling", "safe"
)


@rule(
    "NUM003",
    "half-overflow",
    up_to="error",
    needs=("signals", "parameters", "numerics", "probe"),
    limits={
        "largest": Limit(3e4, "", "heuristic: half of float16's largest number, 65504; beyond a doubling is infinite"),
        "largest_info": Limit(1e4, "", "heuristic: a sixth of float16's largest number"),
    },
    explains=("NUM001", "NUM002", "LOSS003", "LOSS005", "GRAD002", "OPT001", "INIT001"),
)
def half_overflow(m: Measurement, limits: Limits) -> Verdict:
    """Values in a float16 region pass, or come near, the largest number that float16 can hold.

    ## What it finds
    Layers that compute in float16, under autocast or after `.half()`, and whose outputs are infinite or nearly so; and
    operations in float16 that gave the first infinity.

    ## Why it matters
    The largest float16 is 65504. What is larger becomes infinity, the difference of two infinities NaN, and with it the
    loss.

    ## How it is measured
    The largest |output| of each float16 layer at the measured steps, and the first operation that gave infinity when
    the probe training ended with one.

    ## Limits and their sources
    An infinity is an error by itself. A value above `largest` 3e4 is a warning, above `largest-info` 1e4 advice; both are
    heuristics. Advice only for a model that was trained before: some channels of language models are that loud, and stay so.

    ## When to ignore it
    When the values are part of a mask.

    ## Example
    ```python
    with torch.autocast("cuda", dtype=torch.float16):
        energy = features.square().sum(dim=-1)  # 4096 features of size 5 sum up to 1e5
    ```

    ## Use instead
    ```python
    with torch.autocast("cuda", dtype=torch.bfloat16):
        energy = features.square().mean(dim=-1)
    ```

    ## References
    IEEE 754 binary16. Micikevicius et al. 2018, Mixed Precision Training. PyTorch documentation: "Automatic Mixed Precision".
    """
    layers = [x for x in m.layers if x.dtype == "float16"]
    events = [e for e in m.non_finite if e.dtype == "float16" and e.direction != "backward" and e.kind == "inf"]
    if not layers and not events:
        return not_applicable("nothing is computed in float16")
    overflown = next((x for x in layers if any(s.inf for s in _outputs(x))), None)
    if events or overflown is not None:
        return [] if _weights_first(m, overflown) else [_overflow(m, events, overflown)]
    loud = [(size, x) for x in layers if (size := max((_size(s) for s in _outputs(x)), default=0.0)) > limits["largest_info"]]
    return [_near(m, loud, limits)] if loud else []


def _weights_first(m: Measurement, overflown: Layer | None) -> bool:
    """Whether the weights were infinite before the outputs were: the step of the optimizer made them so."""
    if overflown is None:
        return False
    step = next(s.step for s in overflown.snapshots if s.output is not None and s.output.inf)
    return any(not math.isfinite(s.norm) for p in m.parameters for s in p.steps if s.step == step)


def _outputs(layer: Layer) -> list[TensorStats]:
    return [s.output for s in layer.snapshots if s.output is not None]


def _size(s: TensorStats) -> float:
    return max(abs(s.min), abs(s.max))


def _overflow(m: Measurement, events: Sequence[NonFinite], layer: Layer | None) -> Finding:
    if layer is not None:
        step = next(s.step for s in layer.snapshots if s.output is not None and s.output.inf)
        count = next(s.inf for s in _outputs(layer) if s.inf)
        what, name, site = f"layer {layer.name or 'the model'} puts out {count} infinities", layer.name, layer.site
    else:
        event = events[0]
        owner = m.layer(event.layer)
        step, name, site = event.step, event.layer, event.site or (owner.site if owner else None)
        what = f"{event.operation}{f' in {event.layer}' if event.layer else ''} gives infinity"
    return found(
        "error",
        f"{what} in float16 at step {step}: it is beyond {number(LARGEST)}, the largest float16, and the loss becomes infinite or NaN",
        layers=(name,) if name else (),
        location=site,
        evidence=(Evidence("first step with an infinite float16 value", step, None, "=", "", name or None),),
        remedies=(BFLOAT16, _float32(name)),
        confirmed=BY_VALUE,
    )


def _near(m: Measurement, loud: Sequence[tuple[float, Layer]], limits: Limits) -> Finding:
    size, layer = max(loud, key=lambda x: x[0])
    severity: Severity = "warning" if size > limits["largest"] and not m.pretrained else "info"
    limit = limits["largest" if size > limits["largest"] else "largest_info"]
    return found(
        severity,
        f"outputs of {layer.name or 'the model'} reach {number(size)} in float16 (limit {number(limit)}), whose largest number is "
        f"{number(LARGEST)}: a little growth in training makes them infinite",
        layers=[x.name for _, x in loud],
        location=layer.site,
        evidence=(Evidence("largest float16 output", size, limit, ">", "", layer.name),),
        remedies=(BFLOAT16, _float32(layer.name)),
    )


def _float32(name: str) -> Remedy:
    return Remedy("float32-region", f"compute {name or 'this operation'} in float32, and normalise what goes into it", "safe")


@rule(
    "NUM004",
    "half-underflow",
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
    What is flushed to zero is not learned from. Small gradients are most of them, and those of the first layers first.

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
            "what is 0 is not learned from",
            layers=(half.layer,),
            location=layer.site if layer else None,
            evidence=(
                Evidence("gradient entries that are 0 unless the loss is scaled", half.flushed, limits["flushed"], ">", "", half.layer),
            ),
            remedies=(
                Remedy(
                    "loss-scaling",
                    f"scale the loss by {number(half.scale)}, or with torch.amp.GradScaler",
                    "safe",
                ),
                BFLOAT16,
            ),
        )
    ]


@rule(
    "NUM005",
    "lost-updates",
    up_to="warning",
    needs=("parameters", "probe"),
    limits={
        "unchanged": Limit(0.5, "of the entries", "heuristic: bfloat16 keeps 8 bits, so that a change below 1/512 of a weight is lost"),
        "unchanged_learning": Limit(0.6, "of the entries", "measured: from here on 5 times the loss of a float32 twin, see the page"),
    },
    explains=("OPT002", "LOSS005"),
)
def lost_updates(m: Measurement, limits: Limits) -> Verdict:
    """The optimizer's changes are smaller than what bfloat16 or float16 weights can show.

    ## What it finds
    Parameters stored in half precision of which most entries have a gradient and stay exactly as they were in an optimizer
    step.

    ## Why it matters
    A bfloat16 number has 8 significant bits: what changes a weight by less than 1/512 of its size rounds to no change,
    step after step. Training slows down or stops while the loss still has a slope.

    ## How it is measured
    At the measured steps: the share of entries (of a sample in large parameters) with a gradient that is not zero and a value that
    the step left unchanged. The median over steps, averaged over the parameters by their size.

    ## Limits and their sources
    Above `unchanged` 0.5 it is a warning; when the probe learns clearly, or was too short to tell, from `unchanged-learning` 0.6 on,
    and advice below. Measured on a regression of 4 inputs by a residual net in bfloat16, with AdamW: at rates whose steps leave 0.6
    to 0.8 unchanged the loss after 1500 steps is 5 times that of a float32 twin, although the first 300 hardly differ; where 0.4
    stay, 1.6 times.

    ## When to ignore it
    When the optimizer rounds stochastically, or keeps the lost part (Kahan summation).

    ## Example
    ```python
    model = Net().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ```

    ## Use instead
    ```python
    model = Net()  # float32 weights
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = loss_fn(model(x), y)
    ```

    ## References
    Micikevicius et al. 2018, section 3.1; Zamirai et al. 2020, Revisiting BFloat16 Training.
    """
    halves = [p for p in m.parameters if p.dtype in HALVES and p.trainable and p.groups]
    if not halves:
        return not_applicable("no trainable parameter is stored in half precision")
    shares = {p.name: share for p in halves if (share := unchanged(p)) is not None}
    if not shares:
        return not_measured("no step of the optimizer was measured")
    known = [p for p in halves if p.name in shares]
    total = sum(p.count for p in known)
    share = sum(shares[p.name] * p.count for p in known) / total
    unopposed = learns_clearly(m) or training_outcome(m) == "unknown"
    if share <= limits["unchanged"]:
        return []
    severity: Severity = "info" if unopposed and share <= limits["unchanged_learning"] else "warning"
    return [_lost(m, known, share, limits["unchanged"], severity)]


def unchanged(p: Parameter) -> float | None:
    """Median over the measured steps."""
    known = [s.unchanged for s in p.steps if s.unchanged is not None]
    return median(known) if known else None


def _lost(m: Measurement, parameters: Sequence[Parameter], share: float, limit: float, severity: Severity) -> Finding:
    dtype = parameters[0].dtype
    layers = list(dict.fromkeys(p.layer for p in parameters))
    return found(
        severity,
        f"{percent(share)} of the {dtype} weights of {layers_in_words(layers)} stay as they are in a step of {optimizer_in_words(m)} "
        f"(limit {percent(limit)}), although they have a gradient: changes below 2^-{BITS[dtype] + 1} of a weight are lost in rounding",
        layers=layers,
        location=m.optimizer.site,
        evidence=(Evidence("weights with a gradient that a step leaves unchanged", share, limit, ">"),),
        remedies=(
            Remedy("float32-weights", f"keep the weights in float32 and compute in {dtype} under torch.autocast", "safe"),
            Remedy("raise-learning-rate", f"or raise the rate from {number(m.optimizer.lr)}, if the training allows it", "advice"),
        ),
    )


RULES = (half_overflow, half_underflow, lost_updates)
