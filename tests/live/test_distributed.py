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
from gradcheck.workload import ranks
from tests.live.distributed import EVERY, STEPS, checked, scanned

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()) or os.name != "posix", reason="needs gloo, and processes of POSIX"
)


def run(kind: str) -> tuple[Any, Any]:
    """What the two ranks left behind of a kind of training."""
    first, second = ran()
    return first[kind], second[kind]


@functools.cache
def ran(count: int = 2, *kinds: str) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.live.distributed", folder, *kinds]
        started = [
            subprocess.Popen(command, env=shared | {"RANK": str(rank)}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        said = [process.communicate(timeout=120) for process in started]
        assert not any(p.returncode for p in started), said
        assert not any(out for out, _ in said), "gradcheck prints nothing"
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]


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


def test_the_same_batches_on_all_ranks_are_a_warning():
    found = run("same")[0]["watched"]
    ((code, severity, message),) = found["findings"]
    assert (code, severity) == ("LOOP008", "warning") and "the 2 ranks are given the same batch" in message
    assert found["ranks"]["same_batches"] > 4 and run("ddp")[0]["watched"]["ranks"]["same_batches"] == 0


def test_a_nan_on_one_rank_is_told_with_rank_and_layer():
    first = run("nan")[0]["watched"]
    (code, severity, message), *_ = first["findings"]
    assert (code, severity) == ("NUM001", "error") and "in `0` on rank 1 gives NaN at step 10" in message
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


def test_a_rank_that_scanned_alone_meets_the_others_at_the_next_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first meeting is over; they never came to it."""
    store = dist.HashStore()
    monkeypatch.setattr(ranks, "_meetings", {})
    alone = ranks.RankGroup(0, 2, dist.PrefixStore("gradcheck/scan/1", store))
    alone.give_up("the others did not come")
    assert ranks._next_meeting("scan", store) == 2
    monkeypatch.setitem(ranks._meetings, "scan", 1)
    assert ranks._next_meeting("scan", store) == 2


@functools.cache
def checked_by_one_process() -> dict[str, Any]:
    return json.loads(json.dumps(checked("one", 0, 1)))


@functools.cache
def of_one_process() -> dict[str, Any]:
    return json.loads(json.dumps(scanned("one", 0, 1)))


@pytest.mark.parametrize(("kind", "count"), [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4), ("tp", 2), ("2d", 4)])
def test_ranks_report_what_one_process_reports(kind, count):
    """With the batches of all as its own: the same findings, and the same numbers; and all is left as it was."""
    (first, *others), one = (rank["scan"][kind] for rank in (ran() if count == 2 else ran(4, "scan", "fail"))), of_one_process()
    assert first["same"] and all(rank["same"] for rank in others)
    assert first["rules"] and not any(rank["rules"] or rank["findings"] for rank in others)
    assert first["findings"] == one["findings"] and ["ACT002", "error"] in one["findings"]
    how = "each has the same batches" if kind == "tp" else "their batches of a step are measured as one"
    assert first["said"] == [f"{count} processes train together: {how}"]
    assert first["missing"] == one["missing"] == {}
    for quantity in ("losses", "norms", "parameters", "layers", "outputs"):
        assert_close(first[quantity], one[quantity])


def assert_close(value: Any, expected: Any) -> None:
    if isinstance(expected, (list, dict)):
        assert len(value) == len(expected)
        keys = expected if isinstance(expected, dict) else range(len(expected))
        for key in keys:
            assert_close(value[key], expected[key])
    else:
        assert value == (pytest.approx(expected, rel=1e-3, abs=1e-6) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("kind", ["fsdp", "tp"])
def test_what_takes_derivatives_by_all_parameters_sums_over_the_shards(kind):
    (first, _), one = (rank["checks"][kind] for rank in ran()), checked_by_one_process()
    assert one["missing"] == [] and first["missing"] == ["derivatives"]
    assert one["samples"] and one["balance"] and one["sharpness"] and ["zero", "sign"] in one["idle"]
    assert first["cut"] == one["cut"] == ["batches are cut from 48 to 32 of their samples"]
    for quantity in ("samples", "idle", "balance", "sharpness"):
        assert_close(first[quantity], one[quantity])


def test_each_rank_judges_its_own_stage():
    first, second = (rank["apart"] for rank in ran())
    assert (first["stage"], second["stage"]) == ([], ["ACT002"])
    assert "rank 1 of 2 was judged by itself" in second["why"][0]


def test_a_scan_on_rank_0_alone_says_what_it_waits_for():
    alone = ran()[0]["apart"]
    waits, goes_on = alone["heard"].splitlines()
    assert "rank 0 waits" in waits and "on every rank" in waits and "rank 0 is scanned alone" in goes_on
    assert "rank 0 of 2 was judged by itself" in alone["alone"][0]


@pytest.mark.parametrize("count", [2, 4])
def test_an_error_of_one_rank_ends_the_scan_of_all(count):
    """Two train in DDP, four are sharded."""
    *others, last = (rank["fail"] for rank in (ran() if count == 2 else ran(4, "scan", "fail")))
    assert "no such file" in last
    assert all(f"rank {count - 1}: " in told and "no such file" in told for told in others)


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


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

several = "RANK" in sys.modules["os"].environ
if several:
    dist.init_process_group("gloo")
rank, count = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5), nn.Softmax(1))
if several:
    fully_shard(model[0])
    fully_shard(model)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(40):
    for half in range(2):
        if several:
            model.set_requires_gradient_sync(half == 1)
        x = torch.randn(64, 20)
        x, y = x.chunk(count)[rank], (x[:, :5].argmax(1)).chunk(count)[rank]
        (cross_entropy(model(x), y) / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
if several:
    dist.destroy_process_group()
"""


def test_a_sharded_script_is_judged_as_in_one_process(tmp_path):
    """It accumulates gradients without reducing them, and destroys its process group."""
    (tmp_path / "train.py").write_text(SHARDED)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = []
    for program in (["train.py"], ["--", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]):
        words = ["scan", "--isolated", "--select", "LOSS001,LOOP,GRAPH,GRAD001", "--steps", "6", "--output", "json", *program]
        done = subprocess.run(
            [sys.executable, "-m", "gradcheck", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1, done.stderr
        told.append(json.loads(done.stdout))
    one, two = told
    assert [f["code"] for f in two["findings"]] == [f["code"] for f in one["findings"]] == ["LOSS001"]
    losses = [x["measurements"][0]["probe"]["losses"] for x in told]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


FORGOTTEN = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("gloo")
torch.manual_seed(0)
x = torch.randn(512, 20)
data = TensorDataset(x, x[:, :5].argmax(1))
sampler = DistributedSampler(data) if "sampler" in sys.argv else None
loader = DataLoader(data, batch_size=32, sampler=sampler, shuffle=sampler is None)
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
if "ddp" in sys.argv:
    model = DistributedDataParallel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for x, y in loader:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [(("ddp", "sampler"), []), (("ddp",), [("LOOP008", "warning")]), (("sampler",), [("LOOP008", "error")])],
)
def test_a_scan_tells_what_was_forgotten_of_a_distributed_training(given, expected, tmp_path):
    (tmp_path / "train.py").write_text(FORGOTTEN)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", *given]
    words = ["scan", "--isolated", "--select", "LOOP", "--steps", "6", "--output", "json", "--", *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gradcheck", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert [(f["code"], f["severity"]) for f in json.loads(done.stdout)["findings"]] == expected, done.stderr


ALONE = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo", init_method="file://{group}", rank=0, world_size=1)
torch.manual_seed(0)
model = fully_shard(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
x = torch.randn(64, 8)
for _ in range(6):
    loss = nn.functional.cross_entropy(model(x).softmax(1), x.argmax(1) % 3)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_one_process_with_shards_is_measured_in_place(tmp_path):
    """The gathered parameters of the outermost module are freed when the backward pass ends: nothing may read them."""
    (tmp_path / "train.py").write_text(ALONE.format(group=tmp_path / "group"))
    words = ["scan", "--isolated", "--select", "LOSS001,GRAD001", "--steps", "6", "--output", "json", "train.py"]
    done = subprocess.run([sys.executable, "-m", "gradcheck", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert [f["code"] for f in json.loads(done.stdout)["findings"]] == ["LOSS001"]


def test_a_launcher_without_a_program_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        launched.program(parse_args(["--nproc-per-node=2", "missing.py"]))
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: there is no file missing.py")
