"""What is found in a model file, by convention and by flag."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.workload.step import split
from gradcheck.workload.workload import Workload
from tests.loading.conftest import HEAD, NET, Loader, said

BATCH = "\nbatch = (torch.randn(16, 4), torch.randint(3, (16,)))\n"


def loss_of(w: Workload, number: int = 0) -> float:
    return float(w.training_step(w.model, w.batches[number]))


class TestModels:
    @pytest.mark.parametrize(
        "source",
        [
            "model = Net()",
            "model = Net",
            "def model():\n    return Net()",
            "def build_model():\n    return Net()",
            "def make_model(width=6):\n    return Net(width)",
            "def get_model():\n    return Net(), torch.zeros(3)",
            "create_model = Net",
            "net = Net()",
            "",
        ],
    )
    def test_every_convention_finds_the_model(self, loaded: Loader, source: str) -> None:
        w = loaded(NET + source)
        assert type(w.model).__name__ == "Net"
        assert said(w, "model")

    def test_the_class_that_no_other_one_uses_is_the_model(self, loaded: Loader) -> None:
        w = loaded(
            HEAD
            + """
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
    def forward(self, x):
        return self.linear(x)

def helper():
    return Inner()

class MyLoss(nn.Module):
    def forward(self, output, target):
        return output.sum()

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = helper()
    def forward(self, x):
        return self.inner(x)
"""
        )
        assert type(w.model).__name__ == "Outer"

    def test_a_name_and_arguments(self, loaded: Loader) -> None:
        w = loaded(NET + "class Other(Net):\n    pass\n", target="model.py:Net", arguments={"width": "11"})
        assert type(w.model).__name__ == "Net" and w.model.get_submodule("hidden").out_features == 11
        assert "Net(width=11) of model.py" in said(w, "model")

    def test_a_module_in_a_package_with_relative_imports(self, write: Any) -> None:
        write("", "pkg/__init__.py")
        write(NET, "pkg/layers.py")
        write("from .layers import Net\n\ndef build(width=5):\n    return Net(width)\n", "pkg/nets.py")
        for target in ("pkg.nets:build", "pkg/nets.py:build"):
            w = load(TargetSpec(target, device="cpu"))
            assert w.model.get_submodule("hidden").out_features == 5
            assert sorted(w.files) == ["pkg/__init__.py", "pkg/layers.py", "pkg/nets.py"]
            assert w.sites[id(w.model)].path == "pkg/nets.py"

    def test_a_file_whose_name_holds_a_dot(self, write: Any) -> None:
        write("from torch import nn\nmodel = nn.Linear(4, 3)", "model_0.06.py")
        assert load(TargetSpec("model_0.06.py", device="cpu")).model.in_features == 4

    def test_siblings_of_the_same_name_in_two_folders_stay_apart(self, write: Any) -> None:
        for folder, width in (("a", 5), ("b", 7)):
            write(NET.replace("width=6", f"width={width}"), f"{folder}/parts.py")
            write("from parts import Net\nmodel = Net()", f"{folder}/model.py")
        widths = [load(TargetSpec(f"{f}/model.py", device="cpu")).model.get_submodule("hidden").out_features for f in "ab"]
        assert widths == [5, 7]

    def test_rebuilding_with_another_seed_gives_other_weights_and_the_same_seed_the_same(self, loaded: Loader) -> None:
        w = loaded(NET)
        assert w.rebuild is not None
        weights = [x.model.get_submodule("head").weight for x in (w, w.rebuild(0), w.rebuild(1))]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])

    def test_wrappers_are_taken_off_and_said(self, loaded: Loader) -> None:
        w = loaded(NET + "model = nn.DataParallel(torch.compile(Net()))")
        assert type(w.model).__name__ == "Net"
        assert "torch.compile" in said(w, "model") and "DataParallel" in said(w, "model")

    def test_annotations_of_the_file_stay_what_they_are(self, loaded: Loader) -> None:
        w = loaded(NET + "def f(x: int): pass\nassert f.__annotations__ == {'x': int}")
        assert type(w.model).__name__ == "Net"

    def test_a_script_module_is_accepted(self, loaded: Loader) -> None:
        w = loaded(NET + "model = torch.jit.script(Net())" + BATCH)
        assert loss_of(w) > 0

    def test_lazy_layers_get_their_sizes(self, loaded: Loader) -> None:
        w = loaded(HEAD + "model = nn.Sequential(nn.LazyLinear(5), nn.BatchNorm1d(5), nn.LazyLinear(3))" + BATCH)
        assert w.model.get_submodule("0").weight.shape == (5, 4)
        assert w.model.training and float(w.model.get_submodule("1").num_batches_tracked) == 0
        assert len(w.optimizer.param_groups[0]["params"]) == 6

    def test_a_model_that_torch_cannot_deep_copy_at_once(self, loaded: Loader) -> None:
        w = loaded(HEAD + "model = nn.Sequential(nn.Linear(4, 3))\nmodel.cache = model[0].weight * 2" + BATCH)
        assert loss_of(w) > 0


class TestData:
    @pytest.mark.parametrize(
        ("source", "count"),
        [
            ("batch = (torch.randn(16, 4), torch.randint(3, (16,)))", 1),
            ("batch = {'x': torch.randn(16, 4), 'labels': torch.randint(3, (16,))}", 1),
            ("batch = [torch.randn(16, 4), torch.randint(3, (16,))]", 1),
            ("def get_batch():\n    return torch.randn(16, 4), torch.randint(3, (16,))", 5),
            ("def get_batch(split):\n    assert split == 'train'\n    return torch.randn(16, 4), torch.randint(3, (16,))", 5),
            ("def make_batch():\n    torch.manual_seed(3)\n    return torch.randn(16, 4), torch.randint(3, (16,))", 1),
            ("train_loader = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(3)]", 3),
            ("def dataloader():\n    for _ in range(9):\n        yield torch.randn(16, 4), torch.randint(3, (16,))", 5),
            ("train_dataset = torch.utils.data.TensorDataset(torch.randn(96, 4), torch.randint(3, (96,)))", 3),
            ("import numpy as np\nbatch = (np.random.randn(16, 4), np.arange(16) % 3)", 1),
        ],
    )
    def test_every_convention_gives_batches(self, loaded: Loader, source: str, count: int) -> None:
        w = loaded(NET + source, batches=5)
        assert len(w.batches) == count and w.data_given
        inputs, target = split(w.batches[0], w.model)
        x = inputs["x"] if isinstance(inputs, dict) else inputs[0]
        assert x.dtype == torch.float32 and target.dtype == torch.int64 and x.shape[1] == 4
        assert "model.py" in said(w, "data")

    def test_a_data_loader_is_iterated_up_to_the_limit(self, loaded: Loader) -> None:
        source = "d = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))\n"
        w = loaded(NET + source + "train_loader = torch.utils.data.DataLoader(d, batch_size=8, shuffle=True)", batches=4)
        assert len(w.batches) == 4 and w.batches[0][0].shape == (8, 4)

    def test_data_by_flag_come_from_a_file_s_attribute(self, write: Any, loaded: Loader) -> None:
        write("import torch\nchunks = [(torch.zeros(2, 4), torch.tensor([0, 1]))]", "samples.py")
        w = loaded(NET + BATCH, data="samples.py:chunks")
        assert w.batches[0][0].shape == (2, 4) and "samples.py:chunks" in said(w, "data")
        assert "samples.py" in w.files

    @pytest.mark.parametrize(
        "source", ["val_batch = batch", "val_loader = [batch, batch]", "val_dataset = [(batch[0][i], batch[1][i]) for i in range(16)]"]
    )
    def test_validation_data(self, loaded: Loader, source: str) -> None:
        w = loaded(NET + BATCH + source)
        assert w.val_batches[0][0].shape == (16, 4) and said(w, "validation")

    def test_shapes_by_flag(self, loaded: Loader) -> None:
        w = loaded(NET + BATCH, inputs=("float32[5,4]",))
        assert w.batches[0][0].shape == (5, 4) and len(w.batches) == 2 and not w.data_given
        assert not torch.equal(w.batches[0][0], w.batches[1][0])

    def test_named_and_bounded_shapes_by_flag(self, loaded: Loader) -> None:
        source = HEAD + (
            "class Two(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.e = nn.Embedding(50, 4)\n        self.l = nn.Linear(4, 3)\n"
            "    def forward(self, ids, scale):\n        return self.l(self.e(ids).mean(1) * scale)\n"
        )
        for inputs in (("ids=int64<7>[8,5]", "scale=float32[8,1]"), ("int64<7>[8,5]", "float32[8,1]")):
            w = loaded(source, inputs=inputs)
            given, target = split(w.batches[0], w.model)
            ids = given["ids"] if isinstance(given, dict) else given[0]
            assert ids.shape == (8, 5) and int(ids.max()) < 7 and target.shape == (8,)
            assert loss_of(w) > 0


class TestLosses:
    @pytest.mark.parametrize(
        "source",
        [
            "loss_fn = F.cross_entropy",
            "criterion = nn.CrossEntropyLoss()",
            "criterion = nn.CrossEntropyLoss",
            "def loss_fn(output, target):\n    return F.cross_entropy(output, target)",
            "def compute_loss(model, batch):\n    return F.cross_entropy(model(batch[0]), batch[1])",
            "def training_step(model, batch):\n    return {'loss': F.cross_entropy(model(batch[0]), batch[1])}",
            "def loss_fn(net, batch):\n    return F.cross_entropy(net(batch[0]), batch[1])",
            "def compute_loss(logits, target):\n    return F.cross_entropy(logits, target)",
        ],
    )
    def test_every_convention_gives_the_same_loss(self, loaded: Loader, source: str) -> None:
        w = loaded(NET + BATCH + source)
        x, y = w.batches[0]
        assert w.loss_given and loss_of(w) == pytest.approx(float(torch.nn.functional.cross_entropy(w.model(x), y)))
        assert "model.py" in said(w, "loss")

    @pytest.mark.parametrize("name", ["cross_entropy", "CrossEntropyLoss", "cross-entropy", "ce"])
    def test_a_loss_by_name(self, loaded: Loader, name: str) -> None:
        w = loaded(NET + BATCH, loss=name)
        assert w.loss is torch.nn.functional.cross_entropy and w.loss_given

    def test_a_loss_by_reference(self, write: Any, loaded: Loader) -> None:
        write("def zero(output, target):\n    return output.sum() * 0", "losses.py")
        assert loss_of(loaded(NET + BATCH, loss="losses.py:zero")) == 0

    def test_the_model_s_own_training_step_and_optimizer_are_used(self, loaded: Loader) -> None:
        w = loaded(
            NET
            + BATCH
            + """
class Lit(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1]) * 2
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]
model = Lit()
"""
        )
        x, y = w.batches[0]
        assert loss_of(w) == pytest.approx(2 * float(torch.nn.functional.cross_entropy(w.model(x), y)), rel=1e-5)
        assert isinstance(w.optimizer, torch.optim.SGD) and w.optimizer_given

    def test_a_model_that_returns_logits_and_loss(self, loaded: Loader) -> None:
        w = loaded(
            HEAD
            + """
class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(9, 8)
        self.h = nn.Linear(8, 9)
    def forward(self, idx, targets=None):
        logits = self.h(self.e(idx))
        if targets is None:
            return logits[:, -1:], None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())
batch = (torch.randint(9, (4, 6)), torch.randint(9, (4, 6)))
"""
        )
        assert w.loss is None and said(w, "loss") == "loss: the model's own"
        assert loss_of(w) == pytest.approx(2.3, abs=0.8)

    def test_sequence_scores_are_turned_for_torch_s_cross_entropy(self, loaded: Loader) -> None:
        w = loaded(
            HEAD
            + "model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))\n"
            + "batch = (torch.randint(9, (4, 6)), torch.randint(9, (4, 6)))\ncriterion = nn.CrossEntropyLoss()"
        )
        x, y = w.batches[0]
        assert loss_of(w) == pytest.approx(float(torch.nn.functional.cross_entropy(w.model(x).flatten(0, 1), y.flatten())))

    def test_a_loss_without_data_gets_targets_that_it_accepts(self, loaded: Loader) -> None:
        for loss in (
            "cross_entropy",
            "mse_loss",
            "bce_with_logits",
            "nll_loss",
            "multi_margin_loss",
            "soft_margin_loss",
            "kl_div",
            "l1_loss",
        ):
            w = loaded(NET, loss=loss)
            assert torch.isfinite(w.training_step(w.model, w.batches[1])), loss
            assert "random" in said(w, "data")

    def test_labels_out_of_range_are_left_for_the_rules(self, loaded: Loader) -> None:
        batch = "batch = (torch.randn(4, 4), torch.tensor([0, 1, 2, 7]))\n"
        step = "def compute_loss(model, b):\n    return F.cross_entropy(model(b[0]), b[1])"
        for source in ("criterion = nn.CrossEntropyLoss()", step):
            w = loaded(NET + batch + source)
            with pytest.raises(IndexError):
                w.training_step(w.model, w.batches[0])


class TestOptimizers:
    @pytest.mark.parametrize(
        "source",
        [
            "model = Net()\noptimizer = torch.optim.SGD(model.parameters(), lr=0.3)",
            "def make_optimizer(model):\n    return torch.optim.SGD(model.parameters(), lr=0.3)",
            "def make_optimizer(params):\n    return torch.optim.SGD(params, lr=0.3)",
            "def configure_optimizers(model):\n    return {'optimizer': torch.optim.SGD(model.parameters(), lr=0.3), 'lr_scheduler': None}",
            "import functools\noptimizer = functools.partial(torch.optim.SGD, lr=0.3)",
            "def build_model():\n    m = Net()\n    return m, torch.optim.SGD(m.parameters(), lr=0.3)",
        ],
    )
    def test_every_convention(self, loaded: Loader, source: str) -> None:
        w = loaded(NET + source)
        assert isinstance(w.optimizer, torch.optim.SGD) and w.optimizer.param_groups[0]["lr"] == 0.3 and w.optimizer_given
        assert {id(p) for p in w.model.parameters()} == {id(p) for p in w.optimizer.param_groups[0]["params"]}
        assert "SGD" in said(w, "optimizer")

    def test_by_flag(self, loaded: Loader) -> None:
        w = loaded(NET, optimizer="RMSprop", lr=0.02)
        assert isinstance(w.optimizer, torch.optim.RMSprop) and w.optimizer.param_groups[0]["lr"] == 0.02

    def test_none_is_an_assumption(self, loaded: Loader) -> None:
        w = loaded(NET)
        assert isinstance(w.optimizer, torch.optim.AdamW) and not w.optimizer_given
        assert "no optimizer given: AdamW with its default lr 0.001" in said(w, "optimizer")

    def test_frozen_parameters_stay_out_of_the_assumed_one(self, loaded: Loader) -> None:
        w = loaded(NET + "model = Net()\nmodel.hidden.requires_grad_(False)")
        assert len(w.optimizer.param_groups[0]["params"]) == 2

    def test_one_of_another_instance_is_rebuilt_with_its_settings_and_said(self, loaded: Loader) -> None:
        w = loaded(NET + "net = Net()\noptimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.8)", target="model.py:Net")
        assert w.optimizer.param_groups[0]["momentum"] == 0.8
        assert w.optimizer.param_groups[0]["params"][0] is next(iter(w.model.parameters()))
        assert "another instance" in said(w, "optimizer")

    def test_one_that_holds_none_of_the_model_s_parameters_is_left_for_the_rules(self, loaded: Loader) -> None:
        w = loaded(NET + "model = Net()\noptimizer = torch.optim.SGD(Net().parameters(), lr=0.3)")
        assert not {id(p) for p in w.model.parameters()} & {id(p) for p in w.optimizer.param_groups[0]["params"]}
        assert "none of the model's parameters" in said(w, "optimizer")

    def test_a_scheduler_is_left_out_and_said(self, loaded: Loader) -> None:
        source = "model = Net()\noptimizer = torch.optim.SGD(model.parameters(), lr=0.3)\n"
        w = loaded(NET + source + "scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)")
        assert "constant rate" in said(w, "scheduler")


class TestDeviceAndDtype:
    def test_the_dtype_holds_for_model_and_floating_point_data(self, loaded: Loader) -> None:
        w = loaded(NET + BATCH, dtype="bf16")
        assert next(iter(w.model.parameters())).dtype == torch.bfloat16
        assert w.batches[0][0].dtype == torch.bfloat16 and w.batches[0][1].dtype == torch.int64
        assert loss_of(w) > 0

    def test_made_up_inputs_have_the_model_s_dtype(self, loaded: Loader) -> None:
        w = loaded(NET + "model = Net().double()")
        assert w.batches[0][0].dtype == torch.float64 and loss_of(w) > 0

    @pytest.mark.parametrize("settings", [{"device": "cuda:93"}, {"device": "abacus"}, {"dtype": "int4"}])
    def test_absent_ones_are_errors(self, loaded: Loader, settings: dict[str, str]) -> None:
        with pytest.raises(TargetError, match=r"device|dtype") as caught:
            loaded(NET, **settings)
        assert caught.value.hint


def test_sites_and_batches_survive_with_the_workload(loaded: Loader) -> None:
    w = loaded(NET)
    assert isinstance(w.model, nn.Module) and len(w.sites) == 2  # the root is built by gradcheck itself
