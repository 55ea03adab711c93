"""Literal measurements for tests of rules, judge and report: a small healthy model, and pieces to make it faulty.

`measurement()` is a healthy two-layer classifier that learns. Each factory takes overrides by field name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from gradcheck.types.checks import Cost
from gradcheck.types.data import DataFacts, InputFacts, LabelFacts
from gradcheck.types.layers import Layer, Profile, Snapshot, TensorStats
from gradcheck.types.location import Location
from gradcheck.types.loop import NEVER_EVALUATED, NO_SCALER, NOT_RETAINED, LoopFacts
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Environment, Measurement
from gradcheck.types.parameters import Parameter, ParameterStep
from gradcheck.types.structure import LinearPair, Norm, Statistics, Stream
from gradcheck.types.training import OptimizerFacts, Run

STEPS = (0, 1, 3, 10, 30, 99)  # the measured steps of a default scan


def location(line: int = 10, path: str = "model.py", **overrides: Any) -> Location:
    """A one-line span of 19 columns, as `self.fc = nn.Linear(8, 8)` gives for the call."""
    values: dict[str, Any] = {
        "path": path,
        "line": line,
        "column": 20,
        "end_line": line,
        "end_column": 39,
        "scope": "Net.__init__",
    }
    return Location(**values | overrides)


def loop(**overrides: Any) -> LoopFacts:
    """A healthy loop: forty steps of one backward pass each, whose gradients are cleared."""
    values: dict[str, Any] = {
        "optimizer": "optimizer",
        "steps": 40,
        "backwards": 40,
        "parameters": 4,
        "moved": 4,
        "losses": falling(steps=40),
        "rates": (1e-3,) * 40,
        "base_rate": 1e-3,
        "schedules": 0,
        "leftover": 0,
        "lost": 0,
        "accumulated": 1,
        "dropped": 0,
        "made": 1,
        "schedules_made": 0,
        "schedulers": (),
        "loads": (),
        "clips": (),
        "retained": NOT_RETAINED,
        "scaler": NO_SCALER,
        "evaluation": NEVER_EVALUATED,
        "backward_site": location(80),
        "step_site": location(81),
        "clear_site": location(79),
    }
    return LoopFacts(**values | overrides)


def stats(rms: float = 1.0, *, count: int = 2048, mean: float = 0.0, **overrides: Any) -> TensorStats:
    """A finite tensor of the given root mean square; `norm`, `std`, `min` and `max` agree with it."""
    exponent = math.floor(math.log2(rms)) if rms > 0 and math.isfinite(rms) else 0
    values: dict[str, Any] = {
        "count": count,
        "mean": mean,
        "std": math.sqrt(max(rms * rms - mean * mean, 0.0)),
        "norm": rms * math.sqrt(count),
        "min": mean - 3 * rms,
        "max": mean + 3 * rms,
        "zeros": 0.0 if rms > 0 else 1.0,
        "exponent_low": exponent - 1,
        "exponent_counts": (count // 4, count // 2, count // 4) if rms > 0 else (),
    }
    return TensorStats(**values | overrides)


def snapshots(output: float = 1.0, gradient: float | None = 1e-3, steps: Sequence[int] = STEPS, **overrides: Any) -> tuple[Snapshot, ...]:
    """The same output and gradient (root mean squares) at every measured step; overrides go into each Snapshot."""
    gradients = None if gradient is None else stats(gradient)
    return tuple(Snapshot(step, **{"output": stats(output), "gradient": gradients} | overrides) for step in steps)


def profile(**overrides: Any) -> Profile:
    return Profile(**{"activation_bytes": 8192, "forward_ms": 0.1, "backward_ms": 0.2} | overrides)


def layer(name: str = "fc1", kind: str = "linear", **overrides: Any) -> Layer:
    """A healthy layer. Its site is a line of its own unless `site` is given; linear and conv layers hold weight and bias."""
    holds = kind in ("linear", "conv")
    types = {"linear": "Linear", "conv": "Conv2d", "activation": "ReLU", "norm": "LayerNorm", "embedding": "Embedding", "recurrent": "LSTM"}
    values: dict[str, Any] = {
        "type": types.get(kind, "Module"),
        "kind": kind,
        "order": 0,
        "calls": 1,
        "output_shape": (32, 64),
        "site": location(),
        "parameters": (f"{name}.weight", f"{name}.bias") if holds else (),
        "function": "relu" if kind == "activation" else None,
        "fan_in": 64 if holds else None,
        "snapshots": snapshots(),
        "profile": profile(parameters=4160, flops=262144) if holds else profile(),
    }
    return Layer(name, **values | overrides)


def parameter_steps(
    norm: float = 5.0,
    gradient_norm: float | None = 0.1,
    steps: Sequence[int] = STEPS,
    *,
    update_ratio: float | None = 1e-3,
    **overrides: Any,
) -> tuple[ParameterStep, ...]:
    """The same norms at every measured step; overrides go into each ParameterStep."""
    largest = None if gradient_norm is None else gradient_norm / 10
    values: dict[str, Any] = {"gradient_max": largest, "update_ratio": update_ratio}
    return tuple(ParameterStep(step, norm, gradient_norm, **values | overrides) for step in steps)


def parameter(name: str = "fc1.weight", **overrides: Any) -> Parameter:
    """A healthy trainable weight of shape [64, 64] (or a bias of shape [64]) in one group of the optimizer."""
    shape = overrides.get("shape", (64,) if name.endswith("bias") else (64, 64))
    values: dict[str, Any] = {
        "layer": name.rpartition(".")[0],
        "shape": shape,
        "count": math.prod(shape),
        "dtype": "float32",
        "trainable": True,
        "groups": 1,
        "std": 0.072,  # uniform within +- 1 / sqrt(64)
        "steps": parameter_steps(),
    }
    return Parameter(name, **values | overrides)


def optimizer(name: str = "AdamW", **overrides: Any) -> OptimizerFacts:
    """An optimizer that the user gave, AdamW at 1e-3 unless overridden."""
    lr = overrides.get("lr", 1e-3)
    values: dict[str, Any] = {"given": True, "adaptive": name.startswith("Ada"), "lr": lr}
    return OptimizerFacts(name, **values | overrides)


def falling(start: float = 2.3, end: float = 0.5, steps: int = 100) -> tuple[float, ...]:
    """Losses that fall exponentially from `start` to `end`."""
    return tuple(start * (end / start) ** (i / (steps - 1)) for i in range(steps))


def run(losses: Iterable[float] | None = None, name: str = "probe", **overrides: Any) -> Run:
    """A run that learns, unless `losses` say something else."""
    values = tuple(falling() if losses is None else losses)
    norms = tuple(1.0 for _ in values)
    facts: dict[str, Any] = {"gradient_norms": norms, "batches": 4, "lr": 1e-3}
    return Run(name, values, **facts | overrides)


def stalled(level: float = 2.3, steps: int = 100, **overrides: Any) -> Run:
    """A run whose loss stays where it began, but for a ripple of 0.5 %."""
    return run((level * (1 + 0.005 * math.sin(i)) for i in range(steps)), **overrides)


def diverged(start: float = 2.3, steps: int = 30, **overrides: Any) -> Run:
    """A run whose loss grows without bound and ends non-finite."""
    return run((*(start * 2.0**i for i in range(steps)), math.inf), **{"ended": "non-finite"} | overrides)


def loss_call(function: str = "cross_entropy", **overrides: Any) -> LossCall:
    """Cross entropy of logits [32, 10] against 10 classes, near chance before training."""
    values: dict[str, Any] = {
        "site": location(30, column=12, end_column=45, scope="compute_loss"),
        "input_shape": (32, 10),
        "input_min": -1.1,
        "input_max": 1.2,
        "input_std": 0.4,
        "row_sum_error": 2.0,
        "row_logsumexp_error": 2.3,
        "producer": "linear",
        "producer_layer": "fc2",
        "target_kind": "classes",
        "target_shape": (32,),
        "target_dtype": "int64",
        "target_min": 0.0,
        "target_max": 9.0,
        "classes": 10,
        "value": 2.35,
        "chance": math.log(10),
        "uniform": math.log(10),
        "weight_in_total": 1.0,
    }
    return LossCall(function, **values | overrides)


def labels(**overrides: Any) -> LabelFacts:
    """Ten balanced, shuffled classes over four batches of 32."""
    values: dict[str, Any] = {"classes": 10, "counts": (13,) * 8 + (12,) * 2, "minimum": 0, "maximum": 9}
    return LabelFacts(**values | {"classes_per_batch": (10, 10, 10, 10)} | overrides)


def input_facts(name: str = "input", **overrides: Any) -> InputFacts:
    """A standardised float input [32, 64]."""
    values: dict[str, Any] = {
        "shape": (32, 64),
        "dtype": "float32",
        "mean": 0.0,
        "std": 1.0,
        "min": -3.5,
        "max": 3.5,
        "feature_std_ratio": 1.4,
        "used_by": "linear",
    }
    return InputFacts(name, **values | overrides)


def data(**overrides: Any) -> DataFacts:
    """Four batches of 32 samples that the user gave, with labels."""
    values: dict[str, Any] = {"given": True, "batches": 4, "batch_size": 32, "inputs": (input_facts(),), "labels": labels()}
    return DataFacts(**values | overrides)


def stack(count: int, make: Callable[[int], dict[str, Any]] | None = None, prefix: str = "layers", line: int = 12) -> tuple[Layer, ...]:
    """`count` linear layers made by one expression in a loop; `make(i)` gives overrides for layer i."""
    site = location(line)
    return tuple(layer(f"{prefix}.{i}", order=i, **{"site": site} | (make(i) if make else {})) for i in range(count))


def healthy_layers() -> tuple[Layer, ...]:
    alive = {"units": 64, "dead_units": 0, "dead_at_start": 0, "effective_samples": 128, "dead_batches": 4}
    return (
        layer("fc1", order=0, site=location(10), activation="relu", units=None),
        layer("act", "activation", order=1, site=location(11), **alive),
        layer("fc2", order=2, site=location(12), head=True, output_shape=(32, 10)),
    )


def healthy_parameters() -> tuple[Parameter, ...]:
    return (
        parameter("fc1.weight"),
        parameter("fc1.bias"),
        parameter("fc2.weight", shape=(10, 64)),
        parameter("fc2.bias", shape=(10,)),
    )


def measurement(**overrides: Any) -> Measurement:
    """A healthy classifier on the user's own data, loss and optimizer, whose probe training learns."""
    values: dict[str, Any] = {
        "target": "model.py:Net",
        "seed": 0,
        "steps": 100,
        "measured_steps": STEPS,
        "environment": Environment(python="3.11.9", torch="2.13.0", platform="Linux-x86_64", threads=1),
        "layers": healthy_layers(),
        "parameters": healthy_parameters(),
        "optimizer": optimizer(),
        "data": data(),
        "probe": run(),
        "losses": (loss_call(),),
        "loss_given": True,
        "chance": math.log(10),
    }
    return Measurement(**values | overrides)


def with_layer(m: Measurement, name: str, **overrides: Any) -> Measurement:
    """The measurement with some fields of one layer changed."""
    if m.layer(name) is None:
        raise KeyError(name)
    return replace(m, layers=tuple(replace(x, **overrides) if x.name == name else x for x in m.layers))


def with_parameter(m: Measurement, name: str, **overrides: Any) -> Measurement:
    """The measurement with some fields of one parameter changed."""
    if m.parameter(name) is None:
        raise KeyError(name)
    return replace(m, parameters=tuple(replace(p, **overrides) if p.name == name else p for p in m.parameters))


def norm(layer: str = "bn", **overrides: Any) -> Norm:
    """A batch normalization over 2048 values with torch's defaults, at a line of its own."""
    values: dict[str, Any] = {
        "site": location(60),
        "batch": True,
        "values": 2048.0,
        "index": 0,
        "momentum": 0.1,
        "tracks": True,
        "fresh": True,
    }
    return Norm(layer, **values | overrides)


def statistics(evaluated: float = 0.5, batch: float = 0.5, **overrides: Any) -> Statistics:
    return Statistics(evaluated, batch, **overrides)


def pair(first: str = "fc1", second: str = "fc2", **overrides: Any) -> LinearPair:
    """Two layers 64 wide."""
    return LinearPair(first, second, **{"inputs": 64, "inner": 64, "outputs": 64} | overrides)


def stream(growth: float = 2.0, ratio: float = 0.5, sums: int = 8, **overrides: Any) -> Stream:
    """A residual stream that starts at size 1 and ends without normalization."""
    values: dict[str, Any] = {
        "layers": tuple(f"blocks.{i}" for i in range(sums)),
        "site": location(70),
        "start": 1.0,
        "end": growth,
        "ratios": (ratio,) * sums,
    }
    return Stream(**values | overrides)


def cost(code: str, loss: float, changed: float, **overrides: Any) -> Cost:
    """Of a finding without layers or place: a classifier of ten classes after 300 steps, whose loss keeps falling."""
    values: dict[str, Any] = {"layers": (), "location": None, "change": "with a remedy", "steps": 300, "start": 2.35, "early": 2.4}
    return Cost(code, loss=loss, changed=changed, **{"chance": 2.3} | values | overrides)
