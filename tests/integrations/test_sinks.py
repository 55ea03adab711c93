"""Sinks: the numbers that reach real trackers, and what a sink that fails does to the loop."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradcheck
from gradcheck.errors import ConfigError
from gradcheck.live.sinks import MOST_LAYERS, Sink, tag
from gradcheck.types.gauges import Magnitudes
from gradcheck.types.report import Report
from tests.live import faulty, loops


class Kept(Sink):
    def __init__(self, layers: int | None = MOST_LAYERS, fails_at: int = -1) -> None:
        self.layers, self.fails_at = layers, fails_at
        self.rows: dict[int, dict[str, float]] = {}
        self.sizes: dict[int, dict[str, Magnitudes]] = {}
        self.reports: list[Report] = []

    def log(self, step: int, scalars: Mapping[str, float], magnitudes: Mapping[str, Magnitudes]) -> None:
        if step == self.fails_at:
            raise ConnectionError("no network")
        assert step not in self.rows
        self.rows[step], self.sizes[step] = dict(scalars), dict(magnitudes)

    def finish(self, report: Report) -> None:
        self.reports.append(report)

    def layers_at(self, step: int) -> set[str]:
        return {name.split("/")[2] for name in self.rows[step] if name.split("/")[1] in ("gradient", "activation", "update", "dead")}


def train(*sinks: Sink, steps: int = 12, every: int = 5) -> gradcheck.Board:
    """A healthy network, under a fixed seed."""
    boards: list[gradcheck.Board] = []

    def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> gradcheck.Board:
        boards.append(gradcheck.watch(model, optimizer, every=every, sinks=sinks))
        return boards[0]

    loops.classify(watch, steps)
    assert boards[0].failure is None
    return boards[0]


def test_the_numbers_are_those_of_the_report() -> None:
    kept = Kept()
    board = train(kept)
    report = board.report()
    assert sorted(kept.rows) == list(report.measurement.measured_steps) == [0, 1, 2, 3, 5, 10]
    assert kept.reports == [report]
    run = report.measurement.probe
    for i, step in enumerate(kept.rows):
        row = kept.rows[step]
        assert row["gradcheck/loss"] == run.losses[step]
        assert row["gradcheck/gradient_norm"] == run.gradient_norms[i]
        assert all(math.isfinite(value) for value in row.values())
        for layer in report.layers:
            seen = layer.at(step)
            if layer.kind == "linear" and seen is not None and seen.output is not None and seen.gradient is not None:
                assert row[f"gradcheck/activation/{layer.name}"] == seen.output.rms
                assert row[f"gradcheck/gradient/{layer.name}"] == seen.gradient.rms
                found = kept.sizes[step][f"gradcheck/gradient_log2/{layer.name}"]
                assert (found.low, found.counts) == (seen.gradient.exponent_low, seen.gradient.exponent_counts)
        weight = report.measurement.parameter("4.weight")
        update = weight.at(step) if weight is not None else None
        assert update is not None and row["gradcheck/update/4"] == update.update_ratio
    assert kept.rows[0]["gradcheck/findings/error"] == 0
    assert "gradcheck/score/numerics" not in kept.rows[0], "after one step most of its rules cannot look yet"
    assert kept.rows[5]["gradcheck/score/numerics"] == 100


def test_few_layers_by_default_the_same_all_the_way_and_those_of_findings_beside_them() -> None:
    few, every_one = Kept(layers=2), Kept(layers=None)
    faulty.vanishing(lambda model, optimizer: gradcheck.watch(model, optimizer, every=20, sinks=[few, every_one]))
    steps = sorted(few.rows)
    assert len(every_one.layers_at(0)) > 20
    assert 2 <= len(few.layers_at(0)) <= 4
    for before, after in itertools.pairwise(steps):
        assert few.layers_at(before) <= few.layers_at(after)
    judged = [row for row in few.rows.values() if "gradcheck/findings/error" in row]
    assert judged[-1]["gradcheck/findings/error"] >= 1
    assert judged[-1]["gradcheck/score/gradients"] < 50


def test_numbers_that_are_not_finite_stay_out() -> None:
    kept = Kept(layers=None)
    faulty.non_finite(lambda model, optimizer: gradcheck.watch(model, optimizer, every=10, sinks=[kept]))
    assert any("gradcheck/loss" not in row for row in kept.rows.values())
    assert all(math.isfinite(value) for row in kept.rows.values() for value in row.values())


def test_a_sink_that_fails_is_left_out_and_the_run_goes_on() -> None:
    broken, kept = Kept(fails_at=2), Kept()
    with pytest.warns(RuntimeWarning, match="Kept failed and gets no more numbers: ConnectionError: no network"):
        board = train(broken, kept)
    assert board.steps == 12
    assert sorted(broken.rows) == [0, 1] and not broken.reports
    assert sorted(kept.rows) == [0, 1, 2, 3, 5, 10] and len(kept.reports) == 1


def test_sinks_change_nothing_in_the_loop() -> None:
    bare = loops.classify(steps=8)
    fed = loops.classify(lambda model, optimizer: gradcheck.watch(model, optimizer, every=2, sinks=[Kept()]), steps=8)
    assert all(torch.equal(a, b) for a, b in zip(bare, fed, strict=True))


def test_what_is_no_sink_is_refused() -> None:
    with pytest.raises(ConfigError, match="str is not a sink"):
        gradcheck.watch(nn.Linear(2, 2), sinks=["runs"])  # type: ignore[list-item]


@pytest.mark.parametrize(("layer", "name"), [("", "(model)"), ("a.0:relu", "a.0:relu"), ("a/b<c>", "a_b_c_")])
def test_names_of_layers_are_those_that_every_tracker_takes(layer: str, name: str) -> None:
    assert tag(layer) == name


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from gradcheck.integrations.tensorboard import TensorBoard

    kept = Kept()
    with SummaryWriter(str(tmp_path / "given")) as writer:
        train(TensorBoard(writer), TensorBoard(tmp_path / "own"), kept)
        writer.add_scalar("mine", 1.0, 0)  # it is still open
    for name in ("given", "own"):
        events = EventAccumulator(str(tmp_path / name), size_guidance={"histograms": 0, "scalars": 0, "tensors": 0}).Reload()
        read = [(e.step, e.value) for e in events.Scalars("gradcheck/gradient/4")]
        assert read == [(step, pytest.approx(row["gradcheck/gradient/4"], rel=1e-6)) for step, row in kept.rows.items()]
        histograms = events.Histograms("gradcheck/gradient_log2/4")
        assert [h.step for h in histograms] == list(kept.rows)
        counts = kept.sizes[0]["gradcheck/gradient_log2/4"].counts
        assert sum(histograms[0].histogram_value.bucket) == histograms[0].histogram_value.num == sum(counts)
        assert "gradcheck/report/text_summary" in events.Tags()["tensors"]


def test_tensorboard_takes_a_writer_or_a_folder_only() -> None:
    from gradcheck.integrations.tensorboard import TensorBoard

    with pytest.raises(ConfigError, match="needs a SummaryWriter or a folder, not int"):
        TensorBoard(3)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from gradcheck.integrations.wandb import AXIS, WandB

    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    kept = Kept()
    with wandb.init(project="gradcheck-tests", mode="offline", dir=str(tmp_path)) as run:
        run.log({"mine": 1.0}, step=1000)  # ahead of every step of gradcheck's
        train(WandB(run), kept)
        run.log({"mine": 2.0}, step=2000)
    wandb.teardown()  # its service writes the file
    rows = _wandb_rows(next(tmp_path.rglob("run-*.wandb")))
    read = [(row[AXIS], row["gradcheck/gradient/4"]) for row in rows if "gradcheck/loss" in row]
    assert read == [(step, pytest.approx(row["gradcheck/gradient/4"])) for step, row in kept.rows.items()]
    first = next(row for row in rows if "gradcheck/loss" in row)["gradcheck/gradient_log2/4"]
    assert first["_type"] == "histogram" and sum(first["values"]) == sum(kept.sizes[0]["gradcheck/gradient_log2/4"].counts)
    assert [row["mine"] for row in rows if "mine" in row] == [1.0, 2.0]
    assert any(row.get("gradcheck/report", {}).get("_type") == "html-file" for row in rows)


def _wandb_rows(path: Path) -> list[dict[str, Any]]:
    """History of a run that was recorded offline."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in _log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                first, *rest = item.nested_key
                value = json.loads(item.value_json)
                row[first] = {**row.get(first, {}), rest[0]: value} if rest else value
            rows.append(row)
    return rows


def _log_records(file: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format: blocks of 32 KiB, in them chunks of crc32, length and type. W&B has 7 bytes before."""
    at, parts = 7, b""
    while at + 7 <= len(file):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(file[at + 4 : at + 6], "little"), file[at + 6]
        parts += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_without_a_run_is_refused() -> None:
    pytest.importorskip("wandb")
    from gradcheck.integrations.wandb import WandB

    with pytest.raises(ConfigError, match="no run of Weights & Biases"):
        WandB()


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    from gradcheck.integrations.mlflow import MLflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    try:
        with pytest.raises(ConfigError, match="no run of MLflow is active"):
            MLflow()
        kept = Kept()
        with mlflow.start_run() as run:
            board = train(MLflow(), kept)
        client = mlflow.MlflowClient()
        read = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "gradcheck/gradient/4")]
        assert read == [(step, row["gradcheck/gradient/4"]) for step, row in kept.rows.items()]
        names = set(client.get_run(run.info.run_id).data.metrics)
        assert names == {name for row in kept.rows.values() for name in row}
        saved = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="gradcheck/report.json")
        assert [f.code for f in Report.load(saved).findings] == [f.code for f in board.findings]
        assert {f.path for f in client.list_artifacts(run.info.run_id, "gradcheck")} == {"gradcheck/report.html", "gradcheck/report.json"}
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("wandb", "wandb", "wandb"),
        ("mlflow", "mlflow", "mlflow"),
        ("transformers", "transformers", "transformers"),
        ("lightning", "lightning", "lightning"),
    ],
)
def test_a_missing_library_is_one_clear_error(module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"gradcheck.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for gone in (library, f"{library}.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, gone, None)
    with pytest.raises(ConfigError) as caught:
        importlib.import_module(name)
    sys.modules.pop(name, None)
    assert caught.value.hint == f"pip install 'gradcheck[{extra}]'"


def test_a_missing_tensorboard_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gradcheck.integrations.tensorboard import TensorBoard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="needs TensorBoard"):
        TensorBoard(tmp_path)
    assert not list(tmp_path.iterdir())
