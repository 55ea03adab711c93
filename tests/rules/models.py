"""Measurements, and parts of them, that the tests of several rule modules start from."""

from __future__ import annotations

import math
from typing import Any

from gradcheck.types.layers import Layer
from gradcheck.types.losses import Softmax
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import Regularization, Run
from tests.literals import falling, layer, location, measurement, parameter, run, snapshots, stalled, statistics

BODY = ("fc1.weight", "fc1.bias")
CHANCE = math.log(10)
FAILS: dict[str, Any] = {"probe": stalled()}
SHORT: dict[str, Any] = {"probe": run((2.3, 2.3, 2.3))}
WORSE = statistics(0.76, 0.5)  # beyond 1.5 x 0.5, and 0.23 = 0.1 x chance above it
FINE = statistics(0.74, 0.5)


def with_gains(gains: list[float], backward: float = 0.0, forward: float = 0.0, **overrides: Any) -> Measurement:
    """A plain stack of layers of fan-in 64 with these gains; trends in decades per layer, and a default head."""
    facts = {k: overrides.pop(k) for k in ("activation", "normalized", "residual", "kind", "fan_in", "groups") if k in overrides}
    kind = facts.pop("kind", "linear")
    layers = tuple(
        layer(f"layers.{i}", kind, order=i, site=location(12), snapshots=snapshots(10 ** (forward * i), 10 ** (backward * i)), **facts)
        for i in range(len(gains))
    )
    parameters = tuple(parameter(f"layers.{i}.weight", std=g / facts.get("fan_in", 64) ** 0.5) for i, g in enumerate(gains))
    head = layer("head", order=999, head=True, site=location(30))
    values: dict[str, Any] = {"layers": (*layers, head), "parameters": (*parameters, parameter("head.weight", shape=(10, 64)))}
    return measurement(**values | overrides)


def between(*activations: Layer, **overrides: Any) -> Measurement:
    """fc1 -> the activations -> a head."""
    layers = (layer("fc1", order=0), *activations, layer("head", order=99, head=True))
    return measurement(**{"layers": layers} | overrides)


def having(*norms: Any, **overrides: Any) -> Measurement:
    return measurement(**{"norms": norms} | overrides)


def softmax(**overrides) -> Softmax:
    values = {"layer": "head:softmax", "site": location(25), "shape": (32, 10), "axis": 1}
    values |= {"implicit": False, "log": False, "to_loss": True, "over_batch": False}
    return Softmax(**values | overrides)


def without(*kinds: str, end: float = 1.0) -> Run:
    losses = falling(2.3, end) if end < 2.2 else stalled().losses
    return run(losses, f"without {' and '.join(kinds)}", lifted=kinds)


def regularization(*runs: Run, **overrides: Any) -> Regularization:
    """A training that learned nothing, and the trainings without."""
    kinds = tuple(dict.fromkeys(k for r in runs for k in r.lifted))
    values: dict[str, Any] = {"kinds": kinds, "start_loss": 2.3, "trained_loss": 2.3, "chance": CHANCE, "runs": runs}
    return Regularization(**values | overrides)
