"""Spikes: told once, put down to batch, samples, tensor and line; kept, and shown again."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import gradcheck
from gradcheck.analysis.curves import SpikeScore, told
from gradcheck.errors import ConfigError, TargetError
from gradcheck.instrument.loader_batches import LoaderBatches
from gradcheck.live.spikes import worst_samples
from gradcheck.types.gauges import Spike
from gradcheck.types.report import Report
from gradcheck.workload.kept_batch import like, load, plain, random_states, restore_random

BAD = 297  # sample


class Data(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, size: int = 320, bad: float | None = 500.0) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(size, 6)
        self.y = self.x[:, :1] * 2.0
        if bad is not None and size > BAD:
            self.y[BAD] = bad

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], self.y[i]


def trained(data: Data, watch: bool = True, workers: int = 0, **options: object) -> tuple[nn.Module, gradcheck.Board | None]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    board = gradcheck.watch(model, optimizer, **options).start() if watch else None  # type: ignore[arg-type]
    for x, y in DataLoader(data, 8, num_workers=workers):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    if board is not None:
        board.close()
        assert board.failure is None, repr(board.failure)
    return model, board


def test_a_score_tells_a_spike_once_and_noise_never() -> None:
    values = random.Random(0)
    noisy = SpikeScore()
    assert not any(noisy.stands_out(1.0 / (1 + i / 100) * math.exp(values.gauss(0, 0.3))) for i in range(5000))
    score = SpikeScore()
    calm = [1 + 0.1 * values.random() for _ in range(60)]
    course = [*calm, 9.0, 8.0, 1.0, *calm[:30], math.nan, math.inf, 1.0, 20.0]
    assert [i for i, v in enumerate(course) if score.stands_out(v)] == [60, 93, 96]
    shifted = SpikeScore()
    assert sum(shifted.stands_out(1 + 0.1 * values.random() + 50 * (i > 100)) for i in range(600)) == 1


def test_a_bad_sample_is_named_with_its_share_and_tensor() -> None:
    _, board = trained(Data())
    assert board is not None
    (spike,) = board.report().measurement.spikes
    assert spike.step == BAD // 8 and spike.what == "loss" and spike.value > 100 * spike.level
    assert spike.samples == tuple(range(296, 304)) and spike.size == 8
    assert spike.worst[0][0] == 1 and spike.worst[0][1] > 0.99
    assert spike.tensor.startswith("2.") and spike.layer == "2" and spike.share is not None and spike.share > 0.3
    said = told(spike)
    assert f"step {BAD // 8}: loss" in said and f"most of it by sample {BAD} (over 99.9 %); " in said and spike.tensor in said


def test_the_first_nan_is_put_down_to_its_batch_and_nothing_healthy_is_told() -> None:
    _, board = trained(Data(bad=math.nan))
    assert board is not None
    spike = board.report().measurement.spikes[0]
    assert spike.step == BAD // 8 and math.isnan(spike.value) and spike.bad_batch and spike.worst[0] == (1, 1.0)
    assert "its batch holds values that are not finite" in told(spike)
    _, healthy = trained(Data(bad=None))
    assert healthy is not None and healthy.report().measurement.spikes == ()


def test_nothing_is_changed(tmp_path: Path) -> None:
    bare, _ = trained(Data(), watch=False)
    watched, _ = trained(Data(), keep_spikes=2, every=10)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_batch_is_kept_with_the_state_before_its_step(tmp_path: Path) -> None:
    _, board = trained(Data(), keep_spikes=1)
    assert board is not None
    (spike,) = board.report().measurement.spikes
    saved = load(Path(spike.file))
    assert Path(spike.file) == Path(".gradcheck/spikes/step-37.pt") and Path(".gradcheck/.gitignore").exists()
    x, y = saved["batch"]
    assert y[1, 0] == 500 and saved["samples"] == list(spike.samples)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    model.load_state_dict(saved["model"])
    assert F.mse_loss(model(x), y).item() == pytest.approx(spike.value)
    with pytest.raises(ConfigError, match="keep_spikes must be"):
        trained(Data(), keep_spikes=-1)


def test_random_states_come_back() -> None:
    states = random_states()
    first = torch.rand(3), random.random()
    restore_random(states)
    assert torch.equal(first[0], torch.rand(3)) and first[1] == random.random()


def test_what_is_no_batch_of_a_spike_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="there is no file"):
        load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("text")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    torch.save({"gradcheck": 1, "model": None}, tmp_path / "large.pt")
    for name, message in (("text", "not the batch of a spike"), ("other", "not the batch of a spike"), ("large", "holds no state")):
        with pytest.raises(TargetError, match=message):
            load(tmp_path / f"{name}.pt")


def test_batches_of_other_shapes_are_left_alone() -> None:
    saved = plain({"x": torch.ones(2, 3), "name": object(), "y": (torch.zeros(2), "a")})
    again = like({"x": torch.zeros(4, 3), "name": "n", "y": (torch.ones(4), "b")}, saved)
    assert again["x"].shape == (2, 3) and again["name"] == "n" and again["y"][1] == "a"
    for other in ({"x": torch.zeros(4)}, torch.zeros(2), [torch.zeros(2)]):
        with pytest.raises(ValueError):
            like(other, saved)


def test_the_loader_tells_its_samples_also_from_workers_and_a_batch_ahead() -> None:
    listening = LoaderBatches()
    listening.install()
    try:
        for workers in (0, 1):
            seen = []
            for x, _ in DataLoader(Data(40), 8, shuffle=True, num_workers=workers):
                listening.begin_backward()
                assert listening.current is not None
                seen += listening.current.samples
                assert torch.equal(x, Data(40).x[list(listening.current.samples)])
            assert sorted(seen) == list(range(40))
        ahead, given = iter(DataLoader(Data(24), 8)), []
        batch = next(ahead)
        while batch is not None:
            following = next(ahead, None)
            listening.begin_backward()
            assert listening.current is not None and listening.current.batch is batch
            given.append(listening.current.samples[0])
            batch = following
        assert given == [0, 8, 16]
    finally:
        listening.remove()


def test_shares_of_losses_that_torch_knows() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    x.data[2, 0] = 50.0
    assert worst_samples(F.cross_entropy(x, target) / 3, 4)[0] == (2, pytest.approx(1.0, abs=0.1))
    tokens = torch.randn(4 * 5, 3, requires_grad=True)
    tokens.data[7, 0] = 90.0
    labels = torch.ones(20, dtype=torch.long)
    labels[3] = -100
    assert worst_samples(F.cross_entropy(tokens, labels), 4)[0][0] == 1
    z = torch.zeros(4, 1, requires_grad=True)
    assert worst_samples(F.binary_cross_entropy_with_logits(z * 1.0, torch.ones(4, 1)), 4)[0][1] == pytest.approx(0.25)
    assert worst_samples((x * 2).sum(), 4) == () and worst_samples(F.mse_loss(x, torch.zeros(4, 3)) + x.sum(), 4) == ()


SCRIPT = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(320, 6)
y = 2 * x[:, :1]
y[297] = 500.0
model = nn.Sequential(nn.Linear(6, int(sys.argv[1])), nn.Tanh(), nn.Dropout(0.1), nn.Linear(int(sys.argv[1]), 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
for epoch in range(2):
    for a, b in DataLoader(TensorDataset(x, y), 8):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(a), b)
        loss.backward()
        optimizer.step()
"""


def test_a_spike_is_told_kept_and_replayed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "gradcheck", *words], cwd=tmp_path, capture_output=True, text=True, timeout=200)

    done = run("watch", "--every", "20", "--keep-spikes", "1", "--exit-zero", "--", "train.py", "8")
    assert "gradcheck: spike: step 37: loss" in done.stderr and "sample 297" in done.stderr, done.stderr
    assert "spike: step 37" in done.stdout.replace("\n", " ")
    saved = Report.load(tmp_path / ".gradcheck/last.json").measurement.spikes[0]
    assert isinstance(saved, Spike) and saved.site is not None and saved.site.line == 9
    file = ".gradcheck/spikes/step-37.pt"
    again = run("scan", "train.py", "--replay", file, "--steps", "5", "--fast", "--output", "json:run.json", "--exit-zero", "--", "8")
    assert again.returncode == 0, again.stderr
    first = Report.load(tmp_path / "run.json").measurement
    assert first.probe is not None and first.probe.losses[0] > 1000
    other = run("scan", "train.py", "--replay", file, "--steps", "5", "--fast", "--", "9")
    assert other.returncode == 2 and "no model of the script has the parameters" in other.stderr and "help:" in other.stderr
