"""Logs, healthy and not, judged as a user has them judged; and two of them compared."""

from __future__ import annotations

import io
import json
import math
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from gradcheck.config.settings import Settings
from gradcheck.logs.diff import as_json, compare, markdown, text
from gradcheck.logs.report import report_of
from gradcheck.types.report import Report
from tests.logs import writers
from tests.logs.writers import falling

Values = list[float]
N = 400


def constant(value: float, count: int = N) -> Values:
    return [value] * count


def noisy(level: Callable[[int], float], seed: int = 1, size: float = 0.02) -> Values:
    generator = random.Random(seed)
    return [level(i) + size * generator.gauss(0, 1) for i in range(N)]


def heavy_tails() -> Values:
    """As of batches of one sample: some losses are thirty times the usual one."""
    generator = random.Random(3)
    return [(0.2 + math.exp(-i / 60)) * math.exp(1.2 * generator.gauss(0, 1)) for i in range(N)]


COSINE = [1e-3 * min(1.0, i / 20) * (1 + math.cos(math.pi * i / N)) / 2 for i in range(N)]
STEPPED = [1e-1 * 0.1 ** (i // 150) for i in range(N)]
RESTARTED = [1e-3 * (1 + math.cos(math.pi * (i % 100) / 100)) / 2 for i in range(N)]

HEALTHY: dict[str, dict[str, Values]] = {
    "falling": {"loss": falling(N), "lr": COSINE, "grad_norm": noisy(lambda i: 1.0)},
    "stepped": {"loss": falling(N, 1), "lr": STEPPED},
    "restarted": {"loss": falling(N, 2), "lr": RESTARTED},
    "heavy tails": {"loss": heavy_tails()},
    "negative": {"loss": [v - 3 for v in falling(N)]},
    "one bad batch": {"loss": [v + 6 * (i == 200) for i, v in enumerate(falling(N))]},
    "skipped steps": {"loss": falling(N), "grad_norm": [math.inf if i in (3, 200) else 1.0 for i in range(N)]},
    "evaluated": {"loss": falling(N), "val_loss": [v + 0.05 for v in falling(N, 5)]},
    "a little overfitting": {"loss": falling(N), "val_loss": noisy(lambda i: 0.5 + math.exp(-i / 40) + 4e-5 * i)},
    "to the floor": {"loss": [max(v - 0.29, 1e-4) for v in falling(N, tail=0.001)]},
}

FAULTY: dict[str, tuple[dict[str, Values], set[tuple[str, str]]]] = {
    "nan": ({"loss": [v if i < 300 else math.nan for i, v in enumerate(falling(N))]}, {("LOG001", "error")}),
    "hidden nan": ({"loss": falling(N), "grad_norm": [1.0 if i < 300 else math.nan for i in range(N)]}, {("LOG001", "error")}),
    "skips": ({"loss": [math.inf if i % 9 == 0 else v for i, v in enumerate(falling(N))]}, {("LOG001", "warning")}),
    "divergence": ({"loss": [v + max(0.0, 0.05 * (i - 250)) for i, v in enumerate(falling(N))]}, {("LOG002", "error")}),
    "back": ({"loss": [v + max(0.0, 0.01 * (i - 250)) for i, v in enumerate(falling(N))]}, {("LOG002", "warning")}),
    "lasting jump": ({"loss": [v + 0.5 * (i >= 300) for i, v in enumerate(falling(N, tail=0.01))]}, {("LOG003", "warning")}),
    "spikes": ({"loss": [v + 3 * (i > 90 and i % 60 < 5) for i, v in enumerate(falling(N))]}, {("LOG003", "warning")}),
    "flat": ({"loss": noisy(lambda i: 2.3)}, {("LOG004", "warning")}),
    "of the commonest words": ({"loss": noisy(lambda i: 7.6 + 0.25 * math.exp(-i / 20), 4, 0.06)}, {("LOG004", "warning")}),
    "constant": ({"loss": constant(0.693)}, {("LOG004", "warning")}),
    "rate jumps": ({"loss": falling(N), "lr": [1e-4 if i < 200 else 1e-2 for i in range(N)]}, {("LOG005", "warning")}),
    "rate dies": ({"loss": falling(N), "lr": [1e-3 if i < 100 else 1e-8 for i in range(N)]}, {("LOG005", "warning")}),
    "rate is zero": ({"loss": falling(N), "lr": [max(0.0, 1e-3 * (1 - i / 200)) for i in range(N)]}, {("LOG005", "warning")}),
    "overfitting": ({"loss": falling(N), "val_loss": noisy(lambda i: 0.5 + math.exp(-i / 30) + 1e-3 * i)}, {("LOG006", "warning")}),
    "growing norm": ({"loss": falling(N), "grad_norm": [math.exp(max(0, i - 200) / 20) for i in range(N)]}, {("LOG007", "warning")}),
    "no gradient": ({"loss": falling(N), "grad_norm": [1.0 if i < 250 else 0.0 for i in range(N)]}, {("LOG007", "warning")}),
}


def stages(i: int) -> float:
    """A curriculum: harder data three times, each learned in its turn."""
    return 0.3 * (i // 100 + 1) + (2 + i // 100) * math.exp(-(i % 100) / 25)


@dataclass
class Ended:
    code: int
    stdout: str
    stderr: str


def gradcheck(*words: str) -> Ended:
    """The command, in this process."""
    from gradcheck.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["gradcheck", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def judged(columns: dict[str, Values], folder: Path) -> Report:
    report = report_of(writers.json_lines(folder / "run.jsonl", columns), Settings(), {})
    assert not [s for s in report.rules if s.status == "crashed"] and not report.coverage.in_part
    return report


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_logs_get_no_error_and_no_warning(name: str, tmp_path: Path) -> None:
    assert not [f.message for f in judged(HEALTHY[name], tmp_path).findings if f.severity != "info"]


def test_a_loss_that_rises_with_its_data_is_no_error(tmp_path: Path) -> None:
    loss = [v * (0.3 if i < 100 else 1.0) for i, v in enumerate(noisy(stages))]  # it ends above its start
    assert {f.severity for f in judged({"loss": loss}, tmp_path).findings if f.code == "LOG002"} == {"warning"}
    evaluated = {"loss": FAULTY["divergence"][0]["loss"], "val_loss": falling(N)}
    assert "error" not in {f.severity for f in judged(evaluated, tmp_path).findings}


def test_rewards_lead_a_loss_that_need_not_fall(tmp_path: Path) -> None:
    loss = noisy(lambda i: 2e-4 * i)
    for columns in (
        {"reward": loss},
        {"rewards/accuracy_reward/mean": loss, "completions/mean_length": loss},
        {"rollout/ep_rew_mean": loss},
    ):
        assert not [f for f in judged({"loss": loss, **columns}, tmp_path).findings if f.severity != "info"]
    preferences = {"loss": noisy(lambda i: 0.69), "rewards/chosen": loss, "rewards/margins": loss}
    assert {f.code for f in judged(preferences, tmp_path).findings} == {"LOG004"}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_logs_are_told_by_the_right_code(name: str, tmp_path: Path) -> None:
    columns, expected = FAULTY[name]
    report = judged(columns, tmp_path)
    assert {(f.code, f.severity) for f in report.headlines if f.severity != "info"} == expected
    assert all("gradcheck scan train.py" in f.remedies[-1].text for f in report.findings)


@pytest.mark.parametrize("falls", [False, True])
def test_a_loss_scale_that_collapses(falls: bool, tmp_path: Path) -> None:
    """As Megatron's begins, at 2^32, and settles in its first steps."""
    scales = [2.0 ** (32 - 4 * i) if i < 5 else 2.0 ** (16 - falls * max(0, i - 60)) for i in range(N)]
    report = judged({"loss": falling(N), "loss_scale": scales}, tmp_path)
    assert [(f.severity, f.code) for f in report.findings] == [("warning", "WATCH008")] * falls


def test_spikes_say_where_they_are(tmp_path: Path) -> None:
    (finding,) = judged(FAULTY["lasting jump"][0], tmp_path).headlines[:1]
    assert "at step 300" in finding.message and "does not come back" in finding.message


def test_the_command_reports_a_log(tmp_path: Path) -> None:
    path = writers.csv(tmp_path / "run.csv", {"objective": FAULTY["divergence"][0]["loss"]})
    run = gradcheck("report", str(path))
    assert run.code == 2 and "--column loss=NAME" in run.stderr
    run = gradcheck("report", str(path), "--column", "loss=objective")
    assert run.code == 1 and "log-loss-diverged (LOG002) error" in run.stdout and "in the log" in run.stdout
    run = gradcheck("report", str(path), "--column", "loss=objective", "--output", f"json:{tmp_path / 'run.json'}", "--ignore", "LOG002")
    assert run.code == 0
    again = gradcheck("report", str(tmp_path / "run.json"))
    assert again.code == 1 and "LOG002" in again.stdout
    assert gradcheck("report", str(path), "--column", "losses=objective").code == 2
    for format in ("html", "sarif", "markdown", "junit", "concise"):
        assert "LOG002" in gradcheck("report", str(path), "--column", "loss=objective", "--format", format).stdout


def test_gradients_beyond_the_threshold(tmp_path: Path) -> None:
    path = writers.json_lines(tmp_path / "run.jsonl", HEALTHY["falling"])
    assert "LOG007" not in gradcheck("report", str(path)).stdout
    assert "exceed the threshold of 0.1" in gradcheck("report", str(path), "--clip", "0.1").stdout


def test_two_logs_are_compared(tmp_path: Path) -> None:
    for name in ("base", "head", "again"):
        (tmp_path / name).mkdir()
    base, head = judged(HEALTHY["falling"], tmp_path / "base"), judged(FAULTY["divergence"][0], tmp_path / "head")
    differences = compare(base, head)
    assert differences.parting is not None and 250 <= differences.parting.step <= 258
    assert [f.code for f in differences.new] == ["LOG002", "LOG003"] and not differences.fixed
    assert "The losses part at step" in text(differences) and "worse" in text(differences)
    assert markdown(differences).startswith("| | base | head |")
    assert json.loads(as_json(differences))["new"] == ["LOG002", "LOG003"]
    same = compare(base, judged(HEALTHY["falling"], tmp_path / "again"))
    assert same.parting is None and same.compared and not same.new
    other = compare(base, judged({"loss": falling(N, 9)}, tmp_path / "again"))
    assert other.parting is None, "two seeds differ by noise"


def test_the_command_compares_logs(tmp_path: Path) -> None:
    base = writers.json_lines(tmp_path / "a.jsonl", HEALTHY["falling"])
    head = writers.json_lines(tmp_path / "b.jsonl", FAULTY["divergence"][0])
    run = gradcheck("diff", str(base), str(head))
    assert run.code == 0 and "new: log-loss-diverged" in run.stdout
    assert gradcheck("diff", str(base), str(head), "--fail-on-new").code == 1
    assert gradcheck("diff", str(base), str(head), "--format", "html").code == 2
    (tmp_path / "run.json").write_text("{}")
    assert gradcheck("diff", str(base), str(tmp_path / "run.json")).code == 2
