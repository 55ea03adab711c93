"""Two processes that train together, watched: one record of both, the same weights as unwatched, and what is said when they disagree."""

from __future__ import annotations

import functools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.run import parse_args

from gradcheck.live import launched
from gradcheck.types.report import Report
from tests.live.distributed import EVERY, STEPS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()) or os.name != "posix", reason="needs gloo, and processes of POSIX"
)


def run(kind: str) -> tuple[Any, Any]:
    """What the two ranks left behind of a kind of training."""
    first, second = ran()
    return first[kind], second[kind]


@functools.cache
def ran() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.live.distributed", folder]
        started = [
            subprocess.Popen(command, env=shared | {"RANK": rank}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in "01"
        ]
        said = [process.communicate(timeout=120) for process in started]
        assert [p.returncode for p in started] == [0, 0], said
        assert [out for out, _ in said] == ["", ""], "gradcheck prints nothing"
        first, second = (json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in "01")
        return first, second


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_weights_and_random_state_are_those_of_an_unwatched_run(kind):
    for rank in run(kind):
        assert rank["watched"]["digest"] == rank["bare"]["digest"]
        assert rank["watched"]["failure"] == ""


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_healthy_ranks_get_no_finding_and_one_record(kind):
    first, second = (rank["watched"] for rank in run(kind))
    assert first["leads"] and not second["leads"]
    assert first["findings"] == second["findings"] == []
    assert len(first["losses"]) == STEPS and first["ranks"]["count"] == 2
    assert first["samples"] == 2 * 64 * 32, "outputs of both ranks"
    assert "ranks" not in first["missing"] and "rank 0 reports" in second["missing"]["ranks"]


def test_replicas_of_a_sound_training_are_equal_to_the_last_bit():
    steps = run("ddp")[0]["watched"]["ranks"]["steps"]
    assert [s["step"] for s in steps] == [0, 1, 2, 3, *range(EVERY, STEPS, EVERY)]
    assert all(s["distance"] == s["gradients"] == 0 and s["compared"] == 6 for s in steps)


def test_shards_add_up_to_the_whole():
    """The same training sharded and not: all norms, spreads and updates are the same."""
    whole, sharded = run("ddp")[0]["watched"], run("fsdp")[0]["watched"]
    assert sharded["norms"] == pytest.approx(whole["norms"], rel=1e-5)
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    for (name, shape, std, step), (other, its_shape, its_std, its_step) in zip(whole["parameters"], sharded["parameters"], strict=True):
        assert (name, shape) == (other, its_shape) and its_std == pytest.approx(std, rel=1e-5)
        for key in ("norm", "gradient_norm", "gradient_max", "update_ratio"):
            assert its_step[key] == pytest.approx(step[key], rel=1e-4), (name, key)


def test_models_of_different_seeds_without_ddp():
    (code, severity, message), *more = run("seeds")[0]["watched"]["findings"]
    assert (code, severity, more) == ("LOOP008", "error", [])
    assert "started from different parameters" in message and "on rank 1" in message and "not averaged" in message


def test_no_sync_misused_stops_all_ranks_at_the_same_step():
    first, second = (rank["watched"] for rank in run("no-sync"))
    assert first["findings"][0][0] == "LOOP008" and "drift apart from step 1 on" in first["findings"][0][2]
    assert first["stopped"] == second["stopped"] == "LOOP008"
    assert first["steps"] == second["steps"] < STEPS


def test_parameters_that_are_averaged_now_and_then_are_a_note():
    found = run("local")[0]["watched"]
    assert {severity for code, severity, _ in found["findings"] if code == "LOOP008"} <= {"info"}
    assert any(s["distance"] > 1e-4 for s in found["ranks"]["steps"]), "they do differ in between"


def test_a_nan_on_one_rank_is_told_with_rank_and_layer():
    first = run("nan")[0]["watched"]
    (code, severity, message), *_ = first["findings"]
    assert (code, severity) == ("NUM001", "error") and "in 0 on rank 1 gives NaN at step 10" in message
    assert first["ranks"]["non_finite"][0] == {"rank": 1, "step": 10}
    assert all(map(math.isfinite, first["losses"][:10])) and math.isnan(first["losses"][10])


def test_a_rank_that_takes_fewer_steps_holds_up_nobody():
    first, second = (rank["watched"] for rank in run("fewer"))
    assert (first["steps"], second["steps"]) == (STEPS, 9)
    assert len(first["losses"]) == STEPS and "rank 1 has ended" in first["missing"]["ranks"]


def test_a_watch_on_rank_0_alone_goes_on_alone():
    first, second = (rank["watched"] for rank in run("lead"))
    assert first["steps"] == second["steps"] == STEPS and first["failure"] == ""
    assert len(first["losses"]) == STEPS and "not all of the 2 ranks came" in first["missing"]["ranks"]


def test_scan_reports_on_rank_0_and_refuses_shards():
    first, second = run("scan")
    assert first["rules"] and not second["rules"] and first["layers"] == second["layers"] > 0
    assert "sharded over several processes" in first["refused"]


LAUNCHED = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(int(sys.argv[1])):
    optimizer.zero_grad()
    cross_entropy(model(torch.randn(64, 20)), torch.randint(0, 5, (64,))).backward()
    optimizer.step()
dist.destroy_process_group()
print(f"rank {dist.get_rank() if dist.is_initialized() else 'x'} done", flush=True)
"""


def test_torchrun_is_watched_and_reported_on_once(tmp_path):
    (tmp_path / "train.py").write_text(LAUNCHED)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", "12"]
    command = [sys.executable, "-m", "gradcheck", "watch", "--every", "5", "--output", "concise", "--", *program]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("rank x done") == 2 and done.stdout.count("ranks-disagree") == 1
    assert done.stderr.count("gradcheck: run saved") == 1
    saved = Report.load(tmp_path / ".gradcheck" / "last.json").measurement
    assert saved.steps == 12 and saved.ranks is not None and saved.ranks.count == 2 and saved.target == "train.py"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".gradcheck", "train.py"]


def test_a_launcher_without_a_program_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        launched.program(parse_args(["--nproc-per-node=2", "missing.py"]))
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: there is no file missing.py")
