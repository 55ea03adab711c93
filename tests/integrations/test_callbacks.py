"""The callbacks in their real trainers: they stop, log once, save, resume, and leave nothing behind."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import gradcheck
from gradcheck.errors import ConfigError
from gradcheck.integrations.monitor import Monitor
from gradcheck.types.report import Report
from tests.integrations import trainers
from tests.integrations.test_sinks import Kept
from tests.integrations.trainers import Plan
from tests.live.test_traces import traces

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Kind:
    train: Callable[[Plan, Path, Any], Report]
    library: str
    module: str

    def callback(self, **options: Any) -> Any:
        pytest.importorskip(self.library)
        return importlib.import_module(f"gradcheck.integrations.{self.module}").GradcheckCallback(**options)


KINDS = [Kind(trainers.lightning, "lightning", "lightning"), Kind(trainers.transformers, "accelerate", "transformers")]
both = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.module)


@both
def test_it_stops_the_trainer_at_an_error_and_saves_the_report(kind: Kind, tmp_path: Path) -> None:
    before = traces()
    callback = kind.callback(every=5, stop_on="error")
    report = kind.train(Plan(trainers.vanishing, steps=30), tmp_path, callback)
    assert callback.stopped is not None and callback.stopped.severity == "error"
    assert 1 <= report.measurement.steps < 10
    saved = gradcheck.Report.load(tmp_path / "gradcheck.json")
    assert [f.code for f in saved.findings] == [f.code for f in report.findings]
    assert traces() == before


@both
def test_without_stop_on_the_training_runs_to_its_end(kind: Kind, tmp_path: Path) -> None:
    callback = kind.callback(every=5, save=False)
    report = kind.train(Plan(trainers.vanishing, steps=12), tmp_path, callback)
    assert callback.stopped is None and report.measurement.steps == 12 and report.exit_code() == 1
    assert not list(tmp_path.rglob("gradcheck.json"))


@both
def test_the_weights_are_those_of_an_unwatched_training(kind: Kind, tmp_path: Path) -> None:
    ends = []
    for callback in (kind.callback(every=2), kind.callback(every=1000), _Nothing(kind)):
        models: list[torch.nn.Module] = []

        def make(models: list[torch.nn.Module] = models) -> torch.nn.Module:
            models.append(trainers.healthy())
            return models[0]

        kind.train(Plan(make, steps=8), tmp_path, callback.inner if isinstance(callback, _Nothing) else callback)
        ends.append([p.detach().clone() for p in models[0].parameters()])
    assert all(torch.equal(a, b) for other in ends[:2] for a, b in zip(other, ends[2], strict=True))


class _Nothing:
    """A callback that watches nothing."""

    def __init__(self, kind: Kind) -> None:
        base = importlib.import_module("lightning.pytorch" if kind.module == "lightning" else "transformers")
        name = "Callback" if kind.module == "lightning" else "TrainerCallback"
        self.inner = type("Nothing", (getattr(base, name),), {"report": None})()


@both
def test_sinks_get_the_numbers(kind: Kind, tmp_path: Path) -> None:
    kept = Kept()
    report = kind.train(Plan(trainers.healthy, steps=8), tmp_path, kind.callback(every=5, sinks=[kept]))
    assert list(kept.rows) == [0, 1, 2, 3, 5] and kept.reports == [report]


@both
def test_an_exception_of_the_training_is_the_users_and_leaves_no_hooks(kind: Kind, tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = torch.nn.Linear(20, 5), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 4:
                raise ZeroDivisionError("mine")
            return self.layer(x)

    before = traces()
    callback = kind.callback(every=1)
    with pytest.raises(ZeroDivisionError, match="mine"):
        kind.train(Plan(Broken), tmp_path, callback)
    if kind.module == "transformers":  # the Trainer says nothing of an exception
        callback.close()
    assert traces() == before
    assert callback.report is not None and callback.report.measurement.steps == 3


@both
def test_after_an_exception_the_next_training_is_watched(kind: Kind, tmp_path: Path) -> None:
    abandoned = Monitor(save=False)
    model = trainers.healthy()
    abandoned.begin(model, torch.optim.SGD(model.parameters(), lr=0.1), folder=tmp_path, say=lambda text: None)
    report = kind.train(Plan(trainers.healthy, steps=4), tmp_path, kind.callback())
    assert report.measurement.steps == 4 and abandoned.board is None


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be"),
        ({"stop_on": "errors"}, "stop_on must be"),
        ({"sinks": [1]}, "int is not a sink"),
        ({"config": {"slect": 1}}, "slect"),
    ],
)
def test_bad_settings_are_told_when_the_callback_is_made(kind: Kind, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind.callback(**options)


def watched(monitor: Monitor, lines: list[str], folder: Path, plan: Plan, taken: int = 0) -> None:
    model = plan.model()
    optimizer = plan.optimizer(model)
    monitor.begin(model, optimizer, folder=folder, say=lines.append, taken=taken)
    for x, y in plan.loader():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    monitor.end()


def test_each_finding_is_said_once_and_the_report_is_named(tmp_path: Path) -> None:
    lines: list[str] = []
    watched(Monitor(every=1), lines, tmp_path / "new", Plan(trainers.vanishing, steps=8))
    said = [line for line in lines if "deep-sigmoid (ACT003) error: " in line]
    assert len(said) == 1
    assert len(lines) == len(set(lines))
    assert lines[-1].endswith(f"gradcheck report {tmp_path / 'new' / 'gradcheck.json'} shows it")


def test_a_report_that_cannot_be_saved_is_said_and_not_raised(tmp_path: Path) -> None:
    lines: list[str] = []
    monitor = Monitor(save=tmp_path / "no" / "such" / "folder.json")
    watched(monitor, lines, tmp_path, Plan(trainers.healthy, steps=3))
    assert monitor.report is not None
    assert lines[-1].startswith("gradcheck: the report was not saved: ")


def test_a_program_that_is_interrupted_leaves_a_report(tmp_path: Path) -> None:
    """Some trainers tell nobody of Ctrl-C."""
    script = """
        import sys
        from pathlib import Path
        import torch
        from torch import nn
        from gradcheck.integrations.monitor import Monitor

        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Monitor().begin(model, optimizer, folder=Path(sys.argv[1]), say=print)
        for step in range(9):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 2:
                raise KeyboardInterrupt
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "KeyboardInterrupt" in done.stderr and done.returncode != 0
    assert gradcheck.Report.load(tmp_path / "gradcheck.json").measurement.steps == 3


def test_steps_of_a_resumed_training_are_counted_on(tmp_path: Path) -> None:
    kept = Kept()
    watched(Monitor(every=5, sinks=[kept], save=False), [], tmp_path, Plan(trainers.healthy, steps=6), taken=1000)
    assert list(kept.rows) == [1000, 1001, 1002, 1003, 1005]


def test_a_training_without_a_step_is_said_to_have_none(tmp_path: Path) -> None:
    lines: list[str] = []
    monitor = Monitor()
    monitor.begin(trainers.healthy(), None, folder=tmp_path, say=lines.append)
    monitor.end()
    assert lines == ["gradcheck: no step of the optimizer was seen, so there is no report"]
    assert monitor.report is None and not list(tmp_path.iterdir())


def test_findings_reach_the_log_of_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[0]
    callback = kind.callback(every=5)
    told: list[str] = []
    logger = importlib.import_module("lightning_utilities.core.rank_zero").log
    monkeypatch.setattr(logger, "info", lambda text, *args, **kwargs: told.append(text))
    kind.train(Plan(trainers.vanishing, steps=8), tmp_path, callback)
    assert sum("deep-sigmoid (ACT003)" in text for text in told) == 1
