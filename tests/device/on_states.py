"""Random states, default devices, places: what stands around a measurement on an accelerator."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import gradcheck
from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.loading.objects import from_objects
from gradcheck.pipeline import scan_script
from gradcheck.workload.device import accelerator, accelerator_in_use, as_numbers, choose_device, has_float64, on_host, synchronize
from gradcheck.workload.process_state import untouched
from gradcheck.workload.rng import Dice, preserve_rng, reseed, same_states, torch_states
from tests.device import pretend, programs
from tests.device.ledger import recorded

DEVICE = pretend.NAME


def drawn() -> list[float]:
    return [*torch.rand(2, device=DEVICE).tolist(), *torch.rand(2, device="cpu").tolist()]


@pytest.fixture
def default_device() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    try:
        yield
    finally:
        torch.set_default_device(None)


def test_the_accelerator_is_known() -> None:
    assert accelerator() == DEVICE and accelerator_in_use() is pretend.module
    assert choose_device("auto") == torch.device(DEVICE)
    with recorded() as asked:
        synchronize(torch.device(DEVICE))
    assert asked.waits.total() == 1
    assert has_float64(torch.device(DEVICE))


@pytest.mark.parametrize("name", ["acc:3", "cuda", "cuda:1", "mps", "xpu", "hpu", "nonsense"])
def test_an_absent_device_is_one_clear_error(name: str) -> None:
    with pytest.raises(TargetError) as raised:
        choose_device(name)
    assert "choose" in (raised.value.hint or "")


def test_random_numbers_of_the_device_are_put_back_and_drawn_again() -> None:
    torch.manual_seed(3)
    with preserve_rng():
        first = drawn()
        reseed(7)
        second = drawn()
    assert drawn() == first
    reseed(7)
    assert drawn() == second
    dice = Dice(5)
    thrown = []
    for _ in range(2):
        dice.throw()
        thrown.append(drawn())
    assert thrown[0] == thrown[1]


def test_states_tell_whether_numbers_were_drawn() -> None:
    before = torch_states()
    assert same_states(before, torch_states())
    torch.rand(1, device=DEVICE)
    assert not same_states(before, torch_states())


def test_a_scan_changes_nothing_on_the_device() -> None:
    model, batches, optimizer = programs.training("mlp", DEVICE)
    before, weights, state = torch_states(), copy.deepcopy(model.state_dict()), torch.is_autocast_enabled(DEVICE)
    gradcheck.scan(model, batches, loss=F.cross_entropy, optimizer=optimizer, config={"steps": 6, "budget": 600})
    assert same_states(before, torch_states())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in weights.items())
    assert not optimizer.state and all(p.grad is None for p in model.parameters())
    assert torch.is_autocast_enabled(DEVICE) == state


def test_autocast_of_the_device_is_put_back() -> None:
    with untouched():
        torch.set_autocast_enabled(DEVICE, True)
    assert not torch.is_autocast_enabled(DEVICE)


def test_watching_draws_no_numbers_and_changes_no_loss() -> None:
    losses = []
    for watched in (False, True):
        model, batches, optimizer = programs.training("mlp", DEVICE)
        torch.manual_seed(1)
        with gradcheck.watch(model, optimizer, every=2) if watched else contextlib.nullcontext():
            for step in range(8):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(batches[step % 4][0]), batches[step % 4][1])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    assert losses[:8] == losses[8:]


@pytest.mark.parametrize("name", ["mlp", "images", "attending", "lstm", "deep"])
def test_a_model_is_judged_the_same_under_a_default_device(name: str, default_device: None) -> None:
    torch.set_default_device(None)
    usual = programs.scanned(name, DEVICE)
    model, batches, optimizer = programs.training(name, DEVICE)
    torch.set_default_device(DEVICE)
    report = gradcheck.scan(model, batches, loss=F.cross_entropy, optimizer=optimizer, config={"steps": 12, "budget": 600})
    assert sorted(f.code for f in report.findings) == sorted(f.code for f in usual.findings)
    assert [n.what for n in report.measurements[0].not_measured] == [n.what for n in usual.measurements[0].not_measured]


def test_a_loop_is_watched_under_a_default_device(default_device: None) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters())
    with gradcheck.watch(model, optimizer, every=2) as run:
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
            optimizer.step()
    assert len(run.report().measurements[0].measured_steps) >= 4


def test_a_data_set_is_shuffled_under_a_default_device(default_device: None) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    data = TensorDataset(torch.randn(80, 6), torch.randint(3, (80,)))
    report = gradcheck.scan(model, data, loss=F.cross_entropy, config={"steps": 4, "budget": 600})
    assert report.measurements[0].steps >= 4


def test_a_script_with_a_default_device(tmp_path: Path) -> None:
    text = programs.script("dropout", DEVICE).replace("torch.manual_seed(0)", f'torch.manual_seed(0)\ntorch.set_default_device("{DEVICE}")')
    (tmp_path / "train.py").write_text(text)
    try:
        (report,) = scan_script(ScriptSpec(str(tmp_path / "train.py")), Settings(budget=600, steps=8))
    finally:
        torch.set_default_device(None)
    assert len(report.measurements[0].layers) >= 4
    assert not report.measurements[0].not_measured


@pytest.mark.parametrize("swaps", [False, True])
def test_the_optimizer_follows_a_model_that_is_moved(swaps: bool) -> None:
    """Without swapping, torch gives this device other parameter objects."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-4}])
    batch = torch.randn(8, 6), torch.randint(3, (8,))
    torch.__future__.set_swap_module_params_on_conversion(swaps)
    try:
        workload = from_objects(model, [batch], loss=F.cross_entropy, optimizer=optimizer, device=DEVICE)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(True)
    held = [[id(p) for p in group["params"]] for group in workload.optimizer.param_groups]
    assert held == [[id(p) for p in workload.model[i].parameters()] for i in (0, 2)]
    assert [p.device.type for p in model.parameters()] == ["cpu"] * 4


def test_many_tensors_come_to_the_host_with_one_wait() -> None:
    there = [torch.arange(3), torch.randn(2, 2), torch.tensor(True), torch.randn(4).bfloat16(), torch.randn(2).double(), torch.empty(0)]
    with recorded() as asked:
        here = on_host([t.to(DEVICE) if i != 1 else t for i, t in enumerate(there)])
    assert [k for k, _ in asked.waits.elements()].count("d2h") == 1
    for one, other in zip(there, here, strict=True):
        assert other.is_cpu and one.dtype is other.dtype and torch.equal(one, other)
    assert as_numbers([torch.tensor(1.5), torch.tensor(2, device=DEVICE)]) == [1.5, 2.0]
