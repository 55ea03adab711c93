"""The story of a log: its columns become a measurement, which the rules of logs judge."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from gradcheck.config.settings import Settings
from gradcheck.judge.gate_rules import asserted
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.logs.read import read
from gradcheck.types.data import DataFacts
from gradcheck.types.gauges import Gauge
from gradcheck.types.measurement import Assumption, Environment, Measurement
from gradcheck.types.report import Report
from gradcheck.types.training import LogColumn, LogFacts, OptimizerFacts, Run
from gradcheck.version import __version__

SHOWN = 1000  # losses of the run that a page draws


def report_of(path: Path, settings: Settings, columns: Mapping[str, str], clip: float | None = None) -> Report:
    """Judges the log of a finished run by the rules that read logs. Raises ConfigError for what is not a log."""
    started = time.perf_counter()
    measurement = measured(str(path), read(path, columns, clip))
    findings, suppressed, states = judge([measurement], chosen(settings), settings)
    report = Report(measurement.target, findings, states, (measurement,), suppressed, time.perf_counter() - started, __version__)
    return asserted(report, settings)


def measured(target: str, log: LogFacts) -> Measurement:
    """A measurement that holds a log and nothing else."""
    loss = log.loss or log.evaluation
    assert loss is not None
    stride = max(1, -(-len(loss.values) // SHOWN))
    broken = bool(loss.values) and not math.isfinite(loss.values[-1])
    named = {"loss": log.loss, "evaluation": log.evaluation, "rate": log.rate, "norm of the gradient": log.norm, "loss scale": log.scale}
    said = ", ".join(f"{what}: {curve.name}" for what, curve in named.items() if curve is not None)
    return Measurement(
        target=target,
        seed=0,
        steps=round(log.last),
        measured_steps=(),
        environment=Environment(),
        layers=(),
        parameters=(),
        optimizer=OptimizerFacts("unknown", False, False, log.rate.finite.values[0] if log.rate and log.rate.finite.values else 0.0),
        data=DataFacts(True, 0, 0),
        probe=Run("the logged run", loss.values[::stride], live=True, ended="non-finite" if broken else "done"),
        loss_given=True,
        log=log,
        gauges=_scale(log.scale),
        assumptions=(Assumption("data", f"{log.format}, read by its columns {said}", given=True),),
    )


def _scale(curve: LogColumn | None) -> tuple[Gauge, ...]:
    """Without the first tenth of the run, in which a scale comes down from where it begins: 2^32 in Megatron."""
    points = list(zip(curve.finite.steps, curve.finite.values, strict=True)) if curve is not None else []
    points = points[len(points) // 10 :]
    if not points:
        return ()
    (step, peak), steps = max(points, key=lambda p: p[1]), tuple(round(s) for s, _ in points)
    return (Gauge("loss-scale", "the log", "", steps, tuple(v for _, v in points), peak, round(step)),)
