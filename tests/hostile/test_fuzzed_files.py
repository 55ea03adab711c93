"""Saved runs, baselines, configurations and data files that somebody has damaged: each is read, or refused with one error.

500 cases; `pytest tests/hostile --hostile-cases 20000 --hostile-seed 7` tries more, and others.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from gradcheck.bisect.recording import SKETCH, Event, Kind, LayerFacts, Print, RunRecording, save
from gradcheck.bisect.recording import load as load_recording
from gradcheck.bisect.story import BisectOrders, Side, bisected
from gradcheck.config.settings import Settings, load
from gradcheck.errors import GradcheckError
from gradcheck.judge.baseline import KnownFinding
from gradcheck.judge.diff import diff
from gradcheck.judge.judge import judge_again
from gradcheck.live.attach import LastSeen, look
from gradcheck.live.record_file import board_file
from gradcheck.live.screen import Lines
from gradcheck.loading.data_files import read_data
from gradcheck.logs.read import read as read_log
from gradcheck.report import bisection
from gradcheck.report import diff as shown
from gradcheck.report.baseline_file import read
from gradcheck.report.baseline_file import text as baseline_text
from gradcheck.report.diff import page
from gradcheck.report.formatting import View
from gradcheck.report.live import board
from gradcheck.report.outputs import FORMATS, Output, write_outputs
from gradcheck.saved_run import dumps, load_all
from gradcheck.types.gauges import Frame, LiveFinding, LiveLayer
from gradcheck.workload.notebook import code_cells, python_of
from tests.logs import writers
from tests.report.html.pages import treated

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**63, -(2**63), 1e308, -1e308, 5e-324, 0.5, "", "NaN", "Infinity", "-Infinity", "x" * 3000),
    *("\x00", "\x1b[31m", "\u202e", "::error::x", "<script>", "]]>", "a\nb", "error", "GRAD001", [], {}, [[]], [None], {"a": 1}),
]
Move = tuple[str, float, Any]
moves = st.lists(
    st.tuples(st.sampled_from(["replace", "delete", "double", "swap"]), st.floats(0, 1, exclude_max=True), st.sampled_from(ODD)),
    min_size=1,
    max_size=4,
)
cuts = st.lists(
    st.tuples(st.sampled_from(["cut", "flip", "insert"]), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all that a JSON value holds."""
    found: list[tuple[Any, Any]] = []
    queue = [value]
    while queue:
        here = queue.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else []
        found += [(here, key) for key in keys]
        queue += [here[key] for key in keys]
    return found


def moved(text: str, steps: list[Move]) -> str:
    value = json.loads(text)
    for kind, where, odd in steps:
        every = places(value)
        if not every:
            break
        container, key = every[int(where * len(every))]
        if kind == "replace":
            container[key] = copy.deepcopy(odd)  # else one that holds itself has no end
        elif kind == "delete":
            del container[key]
        elif kind == "double" and isinstance(container, list):
            container.insert(key, container[key])
        elif kind == "swap":
            other, name = every[random.Random(where).randrange(len(every))]
            container[key] = json.loads(json.dumps(other[name]))
    return json.dumps(value)


def damaged(data: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, piece in steps:
        at = int(where * (len(data) + 1))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip":
            data = data[:at] + piece + data[at + len(piece) :]
        else:
            data = data[:at] + piece + data[at:]
    return data


def tried(request: pytest.FixtureRequest, strategy: Any, share: float, case: Callable[[Any], None]) -> None:
    """The cases of one kind, of which there are `share` of all."""
    options = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
    count = max(1, int(share * request.config.getoption("--hostile-cases")))

    @hypothesis.seed(request.config.getoption("--hostile-seed"))
    @hypothesis.settings(max_examples=count, **options)
    @hypothesis.given(strategy)
    def run(steps: Any) -> None:
        try:
            case(steps)
        except GradcheckError as error:
            assert error.message and error.hint

    run()


def shown_in(report_file: Path, number: int) -> None:
    """A saved run as every command that reads one takes it, in one of the formats."""
    reports = [judge_again(report, Settings()) for report in load_all(report_file)]
    name = sorted(FORMATS)[number % len(FORMATS)]
    write_outputs(reports, [Output(name, report_file.with_suffix(".out"))], View(color="never", profile=True, show_passed=True))
    differences = diff(load_all(report_file), reports, Path.cwd(), 0.1)
    for render in (shown.text, shown.markdown, shown.as_json, page):
        render(differences, 0.1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_saved_runs_of_another_shape(request: pytest.FixtureRequest, home: Path) -> None:
    text, file = dumps(treated()), home / "run.json"

    def case(steps: list[Move]) -> None:
        file.write_text(moved(text, steps))
        shown_in(file, sum(map(ord, str(steps))))

    tried(request, moves, 0.3, case)


def test_saved_runs_that_are_no_json(request: pytest.FixtureRequest, home: Path) -> None:
    data, file = dumps(treated()).encode(), home / "run.json"

    def case(steps: Any) -> None:
        file.write_bytes(damaged(data, steps))
        load_all(file)

    tried(request, cuts, 0.1, case)


@pytest.mark.parametrize("shape", [True, False])
def test_baselines(shape: bool, request: pytest.FixtureRequest, home: Path) -> None:
    entries = [KnownFinding("model.py", f"GRAD001:{i}", "error", "decades", float(i), ">") for i in range(4)]
    text, file = baseline_text(entries), home / "base.json"

    def case(steps: Any) -> None:
        file.write_bytes(moved(text, steps).encode() if shape else damaged(text.encode(), steps))
        read(file)

    tried(request, moves if shape else cuts, 0.1, case)


def test_configurations(request: pytest.FixtureRequest, home: Path) -> None:
    text = 'steps = 40\nfail-on = "warning"\nselect = ["GRAD", "INIT001"]\n[rules.vanishing-gradient]\nlimit = 3.0\n'
    text += '[targets.a]\nmodel = "a.py"\n'
    file = home / "gradcheck.toml"

    def case(steps: Any) -> None:
        file.write_bytes(damaged(text.encode(), steps))
        load(home)

    tried(request, cuts, 0.2, case)


def of_tensors() -> bytes:
    file = io.BytesIO()
    torch.save({"x": torch.randn(8, 3), "y": torch.zeros(8, dtype=torch.long)}, file)
    return file.getvalue()


def of_arrays() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.ones((8, 3), np.float32), y=np.zeros(8, np.int64))
    return file.getvalue()


def of_one_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((8, 3), np.float32))
    return file.getvalue()


def of_text() -> bytes:
    return b"a,b,label\n" + b"1,2.5,0\n" * 8


@pytest.mark.parametrize(("name", "make"), [("d.pt", of_tensors), ("d.npz", of_arrays), ("d.npy", of_one_array), ("d.csv", of_text)])
def test_data(name: str, make: Callable[[], bytes], request: pytest.FixtureRequest, home: Path) -> None:
    data, file = make(), home / name

    def case(steps: Any) -> None:
        file.write_bytes(damaged(data, steps))
        read_data(str(file), 2, 0)

    tried(request, cuts, 0.05, case)


def fingerprint(value: float) -> Print:
    return Print((3, 2), "float32", f"{value:x}" if isinstance(value, int) else "", float(value), (float(value),) * SKETCH)


def recorded(off: int) -> RunRecording:
    kinds: list[tuple[Kind, str]] = [("weight", "0.weight"), ("forward", "0"), ("loss", "loss"), ("gradient", "0.weight")]
    steps = [[Event(kind, name, 0, fingerprint(n + t + off)) for n, (kind, name) in enumerate(kinds)] for t in range(3)]
    layers = {"0": LayerFacts("Linear", "(3,2)", "t.py:3", False)}
    return RunRecording(steps, [{"torch": "a"}] * 3, [["s"]] * 3, layers, {"0.weight": [(0, {"lr": "0.1"})]})


@pytest.mark.parametrize("shape", [True, False])
def test_recordings(shape: bool, request: pytest.FixtureRequest, home: Path) -> None:
    file = home / "b.recording"
    save([recorded(0), recorded(1)], file)
    data = file.read_bytes()
    a = Side("a", (recorded(0), recorded(0)))

    def case(steps: Any) -> None:
        file.write_bytes(gzip.compress(moved(gzip.decompress(data).decode(), steps).encode()) if shape else damaged(data, steps))
        b = Side("b", tuple(load_recording(file)))
        bisection.text(bisected(a, b, BisectOrders()))
        bisected(b, a, BisectOrders())

    tried(request, moves if shape else cuts, 0.1, case)


NOTEBOOK = {
    "cells": [{"cell_type": "code", "source": ["%matplotlib inline\n", "!ls\n", "x = 1"], "metadata": {}}],
    "metadata": {"kernelspec": {"name": "python3", "language": "python"}, "language_info": {"name": "python"}},
    "nbformat": 4,
}


def test_notebooks(request: pytest.FixtureRequest, home: Path) -> None:
    file = home / "n.ipynb"

    def case(steps: list[Move]) -> None:
        file.write_text(moved(json.dumps(NOTEBOOK), steps))
        for cell in code_cells(str(file)):
            python_of(cell.source)

    tried(request, moves, 0.1, case)


def test_boards(request: pytest.FixtureRequest, home: Path) -> None:
    frame = Frame(3, 1.0, (2.0, 1.0), layers=(LiveLayer("0", "Linear"),), findings=(LiveFinding("GRAD001", "x", "error", "m", "0"),))
    text = json.dumps(asdict(LastSeen("t", 1, "x", "elsewhere", 1.0, frame)))

    def case(steps: list[Move]) -> None:
        board_file(home / "run.json").write_text(moved(text, steps))
        seen = look(home / "run.json")
        if seen is not None and seen.frame is not None:
            Lines().show(seen.frame)
            Console(file=io.StringIO(), width=80).print(board(seen.frame, seen.title, 80))

    tried(request, moves, 0.1, case)


@pytest.mark.parametrize("write", [writers.event_file, writers.trainer_state, writers.wandb, writers.csv])
def test_logs(write: Callable[..., Path], request: pytest.FixtureRequest, home: Path) -> None:
    name = {writers.event_file: "events.out.tfevents.1", writers.trainer_state: "trainer_state.json", writers.wandb: "run.wandb"}
    path = write(home / name.get(write, "m.csv"), {"loss": writers.falling(30), "lr": [1e-3] * 30})
    data = path.read_bytes()

    def case(steps: Any) -> None:
        path.write_bytes(damaged(data, steps))
        read_log(path, {})

    tried(request, cuts, 0.1, case)


def test_a_number_that_no_float_holds(home: Path) -> None:
    rows = [{"loss": 1.0, "step": 1}, {"loss": 10**400, "step": 2}, {"loss": 0.5, "step": 3}]
    (home / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_log(home / "m.jsonl", {}).format
