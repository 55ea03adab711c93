"""Numbers of a run that `[tool.gradcheck.assert]` and `gradcheck diff` know by name: a closed list."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from gradcheck.analysis.convergence import start_and_end
from gradcheck.types.measurement import Measurement

# Name in assertions -> title, families of rules. Families of other packs get a category of their own; META is about comments.
CATEGORIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gradients": ("Gradient flow", ("GRAD", "CLIP")),
    "signal": ("Weights and activations", ("INIT", "ACT", "NORM")),
    "wiring": ("Wiring", ("GRAPH", "LOOP", "SEQ", "MOE", "TUNE")),
    "data": ("Data and loss", ("DATA", "LOSS")),
    "optimization": ("Optimization", ("OPT", "REG", "LOG", "WATCH")),
    "numerics": ("Numerics", ("NUM",)),
}

Aggregate = Literal["median", "optimistic", "pessimistic"]
AGGREGATES: tuple[Aggregate, ...] = ("median", "optimistic", "pessimistic")


@dataclass(frozen=True)
class Stat:
    """A number of one measurement; None where it was not measured. `lower` says which side is the better one, None: neither."""

    about: str
    of: Callable[[Measurement], float | None]
    lower: bool | None = True


def _end(m: Measurement) -> float | None:
    return start_and_end(m.probe)[1] if m.probe.losses else None


def _start(m: Measurement) -> float | None:
    return start_and_end(m.probe)[0] if m.probe.losses else None


def _ratio(m: Measurement) -> float | None:
    start, end = _start(m), _end(m)
    return None if start is None or end is None or start == 0 else end / start


def _gradient_norm(m: Measurement) -> float | None:
    return median(m.probe.gradient_norms) if m.probe.gradient_norms else None


def _largest_gradient_norm(m: Measurement) -> float | None:
    return max(m.probe.gradient_norms, default=None)


def _dead_share(m: Measurement) -> float | None:
    shares = [layer.dead_units / layer.units for layer in m.layers if layer.units and layer.dead_units is not None]
    return max(shares, default=None)


def _flops(m: Measurement) -> float | None:
    known = [x.profile.flops for x in m.layers if x.kind != "container" and x.profile is not None and x.profile.flops is not None]
    return float(sum(known)) if known else None


def _activation_bytes(m: Measurement) -> float | None:
    known = [x.profile.activation_bytes for x in m.layers if x.kind != "container" and x.profile is not None]
    return float(sum(known)) if known else None


STATS: Mapping[str, Stat] = {
    "loss.first": Stat("mean loss over the first visits of the batches of the probe training", _start, None),
    "loss.final": Stat("mean loss over its last visits", _end),
    "loss.ratio": Stat("loss.final over loss.first", _ratio),
    "loss.validation": Stat("loss of the trained copy on the validation data", lambda m: m.validation.loss if m.validation else None),
    "gradient-norm.median": Stat("total 2-norm of the gradient, median over the steps of the probe", _gradient_norm, None),
    "gradient-norm.max": Stat("the largest one", _largest_gradient_norm, None),
    "dead-share.max": Stat("share of units that never fire in the layer that has most of them", _dead_share),
    "parameters": Stat("numbers in the parameters of the model", lambda m: float(sum(p.count for p in m.parameters)), None),
    "flops": Stat("floating point operations of a forward pass, a multiplication and an addition as two", _flops, None),
    "activation-bytes": Stat("bytes of all outputs of layers in a forward pass", _activation_bytes, None),
    "steps": Stat("optimizer steps that the probe training took", lambda m: float(m.steps), None),
    "seconds": Stat("seconds that measuring took", lambda m: m.seconds.get("total"), None),
}


def values(name: str, measurements: Sequence[Measurement]) -> list[float]:
    """The number of each seed that has it."""
    return [float(v) for v in (STATS[name].of(m) for m in measurements) if v is not None]


def aggregated(numbers: Sequence[float], aggregate: Aggregate, *, lower: bool) -> float:
    """One number for the seeds: the median, the best or the worst. NaN is worse than any number."""
    if any(math.isnan(v) for v in numbers) and aggregate != "optimistic":
        return math.nan
    finite = [v for v in numbers if not math.isnan(v)] or [math.nan]
    if aggregate == "median":
        return median(finite)
    return min(finite) if (aggregate == "optimistic") == lower else max(finite)


def known_names() -> tuple[str, ...]:
    """What can be asserted, as far as it does not depend on rule packs."""
    return (*(f"stat:{name}" for name in STATS), *(f"score:{name}" for name in CATEGORIES))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value above at least this share of the others."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
