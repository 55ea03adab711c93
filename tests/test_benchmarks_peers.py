"""benchmarks/peers.py without any peer: its arithmetic, its arguments, and what becomes of a process that ends early."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def _import(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return _import("peers")


@pytest.fixture(scope="module")
def peers_run() -> ModuleType:
    pytest.importorskip("sklearn")
    return _import("peers_run")


def row(seed: int, label: str, *messages: str, seconds: float | None = 1.0, crash: str | None = None) -> dict[str, Any]:
    error, warning = (any(m.startswith(severity) for m in messages) for severity in ("error ", "warning "))
    return {
        "seed": seed,
        "label": label,
        "error": error,
        "warning": warning,
        "messages": list(messages),
        "seconds": seconds,
        "crash": crash,
    }


def test_summary_counts_shares_of_failing_and_of_training_workloads(peers: ModuleType) -> None:
    rows = [
        row(0, "fails", "error E1: it explodes", "warning W1: 3: odd"),
        row(1, "fails", "warning W1: odd"),
        row(2, "fails"),
        row(3, "fails", seconds=None, crash="its process ended with status -9: Killed"),
        row(4, "between", "error E1: it explodes", seconds=9.0),
        row(5, "trains", "warning W1: odd"),
        row(6, "trains", seconds=3.0),
    ]
    named = {"torch-audit": "torch-audit 9.9", "torchdiag": "torchdiag 0.0"}
    lines = peers.summary(named, {"torch-audit": rows, "torchdiag": "No matching distribution found"}).splitlines()
    assert lines[0].split("  ")[-1] == "seconds"
    assert lines[1].split() == "torch-audit 9.9 25% (1/4) 50% (2/4) 0% (0/2) 50% (1/2) 1 1.0".split()
    assert lines[2:] == [
        "torch-audit 9.9:",
        "  error E1                                 {'between': 1, 'fails': 1}",
        "  warning W1                               {'fails': 2, 'trains': 1}",
        "  crashed on 3 (fails): its process ended with status -9: Killed",
        "torchdiag 0.0: not available: No matching distribution found",
    ]


def test_summary_without_a_peer_or_a_label(peers: ModuleType) -> None:
    named = {"torchdiag": "torchdiag 0.0"}
    assert peers.summary(named, {"torchdiag": "no network"}) == "torchdiag 0.0: not available: no network"
    lines = peers.summary(named, {"torchdiag": [row(0, "trains")]}).splitlines()
    assert lines[1].split() == "torchdiag 0.0 none none 0% (0/1) 0% (0/1) 0 1.0".split()
    assert lines[2:] == ["torchdiag 0.0:", "  silent"]


def test_arguments(peers: ModuleType) -> None:
    arguments = peers.parse(["--seeds", "1000:1002", "--peers", "torchdiag,torch-audit,torchdiag"])
    assert arguments.seeds == range(1000, 1002)
    assert arguments.peers == ["torchdiag", "torch-audit"]
    assert arguments.steps is None
    assert peers.parse([]).peers == list(peers.VERSIONS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "1000"], "'1000' is not FIRST:END"),
        (["--seeds", "5:5"], "'5:5' is not FIRST:END"),
        (["--seeds", "a:5"], "'a:5' is not FIRST:END"),
        (["--peers", "torchdiag,cockpit"], "no peer 'cockpit'; there are torch-audit,"),
        (["--peers", ""], "no peer ''"),
        (["--steps", "0"], "'0' is not a positive number"),
    ],
)
def test_argument_errors(peers: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        peers.parse(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_process_that_ends_early_costs_its_workload_only(peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = """
import json, sys
first, end = map(int, sys.argv[2].split(":"))
for seed in range(first, end):
    if seed == 8:
        sys.exit("out of memory")
    print(json.dumps({"seed": seed, "crash": None}), flush=True)
"""
    (tmp_path / "peers_run.py").write_text(script)
    monkeypatch.setattr(peers, "HERE", tmp_path)
    rows = list(peers.applied("torchdiag", Path(sys.executable), range(7, 10), None))
    assert [(r["seed"], r["crash"]) for r in rows] == [(7, None), (8, "its process ended with status 1: out of memory"), (9, None)]


def test_a_peer_that_cannot_be_installed(peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Failed:
        returncode, stdout, stderr = 1, "", "WARNING: old\nERROR: No matching distribution found for torchdiag\nhint: none\n"

    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: Failed)
    with pytest.raises(peers.NotAvailable, match=r"^No matching distribution found for torchdiag$"):
        peers.environment("torchdiag", tmp_path)


def test_an_environment_is_made_once(peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    class Done:
        returncode, stdout, stderr = 0, "", ""

    def run(command: list[str], **_: object) -> type[Done]:
        commands.append(command)
        for python in (tmp_path / "torchdiag/bin/python", tmp_path / "torchdiag/Scripts/python.exe"):
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        return Done

    monkeypatch.setattr(peers.subprocess, "run", run)
    python = peers.environment("torchdiag", tmp_path)
    assert len(commands) == 2 and commands[1][-1] == f"torchdiag=={peers.VERSIONS['torchdiag']}"
    assert [pin.split("==")[0] for pin in commands[1][-4:-1]] == list(peers.BESIDE)
    assert peers.environment("torchdiag", tmp_path) == python and len(commands) == 2
    monkeypatch.setitem(peers.VERSIONS, "torchdiag", "9.9")
    assert peers.environment("torchdiag", tmp_path) == python and commands[-1][-1] == "torchdiag==9.9"


def test_both_files_know_the_same_peers(peers: ModuleType, peers_run: ModuleType) -> None:
    assert list(peers.VERSIONS) == list(peers_run.PEERS)


def test_a_peer_watches_the_first_steps_of_the_training_that_labels(peers_run: ModuleType) -> None:
    case = peers_run.draw(1001)
    steps = list(peers_run.training(case, len(case.batches) + 2))
    assert len(steps) == len(case.batches) + 2
    assert all(len(x) == len(y) == len(steps[0][0]) for x, y in steps)


def test_a_crash_of_a_peer_is_a_row(peers_run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def peer(case: object, steps: int) -> Any:
        yield "warning", "W1", "long " * 100
        yield "warning", "W1", "said before"
        yield "note", "N1", "by the way"
        raise ValueError("in the middle")

    monkeypatch.setitem(peers_run.PEERS, "torchdiag", peer)
    found = peers_run.apply("torchdiag", 1001, 3)
    assert (found["error"], found["warning"], found["crash"]) == (False, True, "ValueError: in the middle")
    assert len(found["messages"]) == 1 and found["messages"][0].startswith("warning W1: long long")


def test_issues_that_torchdiag_prints(peers_run: ModuleType) -> None:
    printed = """
⚠ ISSUES FOUND:
  • 2: 60% neurons dead
  • 4: 25% neurons dead
  • 1.weight: gradient max 2.10e-09 — vanishing
  • Loss is nan — not finite
  • No parameters changed — model is not learning
✓ Training step verified — all systems go
"""
    assert [(severity, kind) for severity, kind, _ in peers_run.torchdiag_issues(printed)] == [
        ("error", "dead-neurons"),
        ("warning", "dead-neurons"),
        ("warning", "vanishing"),
        ("error", "loss-not-finite"),
        ("error", "no-update"),
    ]
