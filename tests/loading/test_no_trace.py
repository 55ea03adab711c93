"""Loading leaves the process, the user's folder and the user's objects as they were."""

from __future__ import annotations

import copy
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading.load import load
from gradcheck.loading.objects import from_objects
from gradcheck.loading.spec import TargetSpec
from tests.loading.conftest import HEAD, NET

INTRUSIVE = (
    HEAD
    + """
import os, sys, random
import numpy as np
from parts import Net
print("building")
sys.path.append("nowhere"); sys.argv.append("--more"); os.chdir("/")
torch.manual_seed(5); np.random.seed(5); random.seed(5)
model = Net()
def get_batch():
    return torch.randn(8, 4), torch.randint(3, (8,))
"""
)


def states() -> tuple[Any, ...]:
    numbers = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        numbers[1].tolist(),  # type: ignore[index]
        random.getstate(),
        list(sys.path),
        list(sys.argv),
        os.getcwd(),
        sys.dont_write_bytecode,
        nn.Module.__init__,
    )


@pytest.mark.parametrize("ending", ["", "raise RuntimeError", "raise KeyboardInterrupt"])
def test_the_process_and_the_folder_are_as_before(write: Any, folder: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    write(NET, "parts.py")
    write(INTRUSIVE + ending)
    before, files = states(), sorted(folder.rglob("*"))
    try:
        load(TargetSpec("model.py", device="cpu"))
    except (TargetError, KeyboardInterrupt):
        assert ending
    assert states() == before
    assert sorted(folder.rglob("*")) == files
    printed = capsys.readouterr()
    assert printed.out == "" and "building" in printed.err


def test_a_module_of_the_same_name_in_the_process_is_left_in_place(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(NET)
    own = type(sys)("model")
    own.__file__ = __file__
    monkeypatch.setitem(sys.modules, "model", own)
    load(TargetSpec("model.py", device="cpu"))
    assert sys.modules["model"] is own


def bits(model: nn.Module) -> list[Any]:
    return [(n, t.clone()) for n, t in model.state_dict().items()] + [m.training for m in model.modules()]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(a == b if isinstance(a, bool) else a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


class TestObjects:
    def build(self) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        model[1].eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, (torch.randn(16, 4), torch.randint(3, (16,)))

    @pytest.mark.parametrize("how", ["loss", "step", "global step", "dtype", "nothing"])
    def test_they_stay_untouched(self, how: str) -> None:
        model, optimizer, batch = self.build()
        settings: dict[str, Any] = {
            "loss": {"loss": nn.functional.cross_entropy},
            "step": {"training_step": lambda m, b: m(b[0]).sum()},
            "global step": {"training_step": lambda m, b: model(b[0]).sum()},
            "dtype": {"dtype": "float64"},
            "nothing": {},
        }[how]
        before, rng, kept = bits(model), torch.get_rng_state(), copy.deepcopy(optimizer.state_dict())
        w = from_objects(model, batch, optimizer=optimizer, **settings)
        assert same(before, bits(model)) and torch.equal(rng, torch.get_rng_state())
        assert optimizer.state_dict() == kept
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert (w.model is model) == (how != "dtype")
        own = {id(p) for p in w.model.parameters()}
        assert {id(p) for group in w.optimizer.param_groups for p in group["params"]} == own
        assert w.rebuild is None and not w.sites

    def test_lazy_models_are_copied(self) -> None:
        model = nn.Sequential(nn.LazyLinear(3))
        w = from_objects(model, (torch.randn(8, 4), torch.randint(3, (8,))))
        assert isinstance(model[0].weight, nn.UninitializedParameter) and w.model.get_submodule("0").weight.shape == (3, 4)

    def test_batches_of_every_kind(self) -> None:
        model, _, (x, y) = self.build()
        many = [(x, y), (x, y)]
        for data, count in (((x, y), 1), (many, 2), (iter(many), 2), ([x, y], 1), ([x, x + 1], 2), (x, 1), ({"input": x, "label": y}, 1)):
            w = from_objects(model, data)
            assert len(w.batches) == count and torch.isfinite(w.training_step(model, w.batches[0]))

    def test_without_data_inputs_are_made_up_and_said(self) -> None:
        w = from_objects(self.build()[0])
        assert not w.data_given and any(a.about == "data" and not a.given for a in w.assumptions)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model": 3}, "not a torch.nn.Module"),
            ({"data": []}, "data is empty"),
            ({"data": 3}, "data is a int"),
            ({"optimizer": "adam"}, "not a torch.optim.Optimizer"),
            ({"loss": nn.functional.cross_entropy, "training_step": lambda m, b: 0}, "exclude"),
            ({"data": torch.randn(3, 9)}, "mat1 and mat2"),
        ],
    )
    def test_unusable_ones_are_errors(self, settings: dict[str, Any], message: str) -> None:
        model, _, batch = self.build()
        with pytest.raises(TargetError, match=message) as caught:
            from_objects(**{"model": model, "data": batch, **settings})
        assert caught.value.hint

    def test_the_files_of_its_classes_are_known(self) -> None:
        assert from_objects(Own(), torch.randn(8, 4)).files == (str(Path(__file__).relative_to(Path.cwd())),)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)
