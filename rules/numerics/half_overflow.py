import math
from collections.abc import Sequence

from gradcheck.analysis.wording import BY_VALUE, number, quoted
from gradcheck.rules.numerics import BFLOAT16
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.layers import Layer, TensorStats
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule
from gradcheck.types.training import NonFinite

LARGEST = 65504.0  # the largest float16


@rule(
    "NUM003",
    up_to="error",
    needs=("signals", "parameters", "numerics", "probe"),
    limits={
        "largest": Limit(3e4, "", "heuristic: half of float16's largest number, 65504; beyond a doubling is infinite"),
        "largest_info": Limit(1e4, "", "heuristic: a sixth of float16's largest number"),
    },
    explains=("NUM001", "NUM002", "LOSS003", "LOSS005", "GRAD002", "OPT001", "OPT007", "INIT001", "WATCH008", "WATCH009"),
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
    heuristics. Advice only for a pretrained model: some channels of language models are that large, and stay so.

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
        what, name, site = f"layer {layer.name or 'the model'} outputs {count} infinities", layer.name, layer.site
    else:
        event = events[0]
        owner = m.layer(event.layer)
        step, name, site = event.step, event.layer, event.site or (owner.site if owner else None)
        what = f"{event.operation}{f' in {quoted(event.layer)}' if event.layer else ''} gives infinity"
    return found(
        "error",
        f"{what} in float16 at step {step}: it is beyond {number(LARGEST)}, the largest float16, and the loss becomes infinite or NaN",
        layers=(name,) if name else (),
        location=site,
        evidence=Evidence("first step with an infinite float16 value", step, None, "=", "", name or None),
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
        f"{number(LARGEST)}: if they grow a little in training, they become infinite",
        layers=[x.name for _, x in loud],
        location=layer.site,
        evidence=Evidence("largest float16 output", size, limit, ">", "", layer.name),
        remedies=(BFLOAT16, _float32(layer.name)),
    )


def _float32(name: str) -> Remedy:
    return Remedy("float32-region", f"compute {name or 'this operation'} in float32, and normalise what goes into it", "safe")
