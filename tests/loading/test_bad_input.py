"""Unusable targets: one clear error, with the place and the next step."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.errors import TargetError
from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.measure.faithful import ensure_faithful
from tests.loading.conftest import HEAD, NET, Loader

BATCH = "\nbatch = (torch.randn(16, 4), torch.randint(3, (16,)))\n"


def error_of(loaded: Loader, source: str, **settings: Any) -> TargetError:
    with pytest.raises(TargetError) as caught:
        loaded(source, **settings)
    assert caught.value.hint, "an error says what to do next"
    return caught.value


def place(error: TargetError) -> tuple[str, int] | None:
    return (error.location.path, error.location.line) if error.location else None


class TestTheFile:
    def test_it_raises_on_import(self, loaded: Loader) -> None:
        error = error_of(loaded, "def f():\n    return 1 / 0\n\nf()\n")
        assert "ZeroDivisionError: division by zero" in error.message and place(error) == ("model.py", 2)
        assert isinstance(error.__cause__, ZeroDivisionError)

    def test_it_has_a_syntax_error(self, loaded: Loader) -> None:
        error = error_of(loaded, "x = 1\ny = (\n")
        assert "SyntaxError" in error.message and place(error) == ("model.py", 2)

    def test_it_imports_what_is_not_installed(self, loaded: Loader) -> None:
        error = error_of(loaded, "\nimport absent_package\n")
        assert place(error) == ("model.py", 2) and "absent_package" in error.hint

    def test_it_exits(self, loaded: Loader) -> None:
        error = error_of(loaded, "import sys\nsys.exit(3)\n")
        assert "exits by itself" in error.message and "__main__" in error.hint and place(error) == ("model.py", 2)

    def test_it_is_a_script_without_a_model(self, loaded: Loader) -> None:
        error = error_of(loaded, HEAD + "if __name__ == '__main__':\n    model = nn.Linear(2, 2)\n")
        assert "model.py has no model" in error.message and "build_model()" in error.hint

    @pytest.mark.parametrize(
        ("target", "message", "hint"),
        [
            ("modle.py", "there is no file modle.py", "did you mean model.py"),
            ("absent_pkg.mod:x", "no file and no module", "package.module:name"),
            (".", "folder", ".py"),
            ("weights.pt", "not a Python file", ".py"),
            ("model.py:Nat", "has no Nat", "did you mean model.py:Net"),
            ("model.py:F", "is a module, not a model", "model.py:Net"),
            ("model.py:number", "is a int, not a model", "model.py:Net"),
        ],
    )
    def test_the_name_is_wrong(self, write: Any, target: str, message: str, hint: str) -> None:
        write(NET + "number = 3")
        write("", "weights.pt")
        with pytest.raises(TargetError) as caught:
            load(TargetSpec(target))
        assert message in caught.value.message and hint in caught.value.hint


class TestTheModel:
    def test_several_classes(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "class Other(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n")
        assert "several candidates" in error.message and "gradcheck scan model.py:Net or model.py:Other" in error.hint

    def test_several_instances(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "generator = Net()\ndiscriminator = Net()\n")
        assert "model.py:generator" in error.hint

    def test_it_needs_arguments(self, loaded: Loader) -> None:
        error = error_of(loaded, NET.replace("width=6", "width, depth"))
        assert "needs width, depth" in error.message and "--arg width=VALUE --arg depth=VALUE" in error.hint

    def test_an_unknown_argument(self, loaded: Loader) -> None:
        error = error_of(loaded, NET, arguments={"wdth": "3"})
        assert "no argument wdth" in error.message and "width" in error.hint

    def test_arguments_for_a_finished_model(self, loaded: Loader) -> None:
        assert "takes no --arg" in error_of(loaded, NET + "model = Net()", arguments={"width": "3"}).message

    def test_its_constructor_raises(self, loaded: Loader) -> None:
        error = error_of(loaded, NET, arguments={"width": "-1"})
        assert "cannot be built" in error.message and place(error) == ("model.py", 9)

    def test_a_factory_returns_something_else(self, loaded: Loader) -> None:
        assert "returns int, not a torch.nn.Module" in error_of(loaded, "def build_model():\n    return 3").message

    def test_no_parameters(self, loaded: Loader) -> None:
        error = error_of(loaded, HEAD + "model = nn.ReLU()" + BATCH)
        assert "has no parameters" in error.message and "nn.ModuleList" in error.hint

    def test_all_frozen(self, loaded: Loader) -> None:
        assert "no trainable parameters" in error_of(loaded, NET + "model = Net().requires_grad_(False)").message

    def test_a_nan_model_is_no_error(self, loaded: Loader) -> None:
        w = loaded(NET + BATCH + "model = Net()\nnn.init.constant_(model.head.weight, float('nan'))")
        assert w.training_step(w.model, w.batches[0]).isnan()

    def test_one_that_cannot_be_copied_is_borrowed(self, loaded: Loader) -> None:
        w = loaded(NET + BATCH + "import threading\nmodel = Net()\nmodel.lock = threading.Lock()")
        ensure_faithful(w)
        assert w.borrowed is not None and "cannot be copied" in w.borrowed.why


class TestTheData:
    def test_wrong_shapes(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "batch = (torch.randn(16, 5), torch.randint(3, (16,)))")
        assert "mat1 and mat2 shapes cannot be multiplied" in error.message and place(error) == ("model.py", 13)
        assert "`batch` in model.py (float32 [16, 5])" in error.hint

    def test_wrong_shapes_by_flag(self, loaded: Loader) -> None:
        assert "--input float32[16,5]" in error_of(loaded, NET, inputs=("float32[16,5]",)).hint

    def test_wrong_dtype(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "batch = (torch.randn(16, 4).double(), torch.randint(3, (16,)))")
        assert "dtype" in error.message and "float64 [16, 4]" in error.hint and error.location is not None

    def test_wrong_shapes_inside_the_user_s_own_step(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "batch = torch.randn(16, 5)\ndef compute_loss(model, b):\n    return model(b).sum()")
        assert "mat1 and mat2" in error.message and place(error) == ("model.py", 13)

    def test_an_own_step_that_does_not_reach_the_model(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + BATCH + "def compute_loss(model, b):\n    return model(b['x']).sum()")
        assert "TypeError" in error.message and error.location is not None

    def test_too_many_inputs(self, loaded: Loader) -> None:
        error = error_of(loaded, NET.replace("def forward(self, x)", "def forward(self, x, mask, other)") + BATCH)
        assert "needs 3 arguments" in error.hint

    @pytest.mark.parametrize(
        "source", ["train_loader = []", "train_loader = iter([])", "train_dataset = []", "def get_batch():\n    return []"]
    )
    def test_empty_loaders(self, loaded: Loader, source: str) -> None:
        assert "is empty" in error_of(loaded, NET + source).message

    def test_a_loader_that_drops_its_only_batch(self, loaded: Loader) -> None:
        source = "d = torch.utils.data.TensorDataset(torch.randn(8, 4))\ntrain_loader = torch.utils.data.DataLoader(d, 32, drop_last=True)"
        assert "drop_last" in error_of(loaded, NET + source).hint

    def test_a_batch_without_samples(self, loaded: Loader) -> None:
        assert "no samples" in error_of(loaded, NET + "batch = (torch.randn(0, 4), torch.randint(3, (0,)))").message

    def test_a_loader_that_raises(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "def get_batch():\n    raise KeyError('nothing')")
        assert "KeyError" in error.message and place(error) == ("model.py", 15)

    def test_a_batch_function_that_needs_arguments(self, loaded: Loader) -> None:
        assert "needs path" in error_of(loaded, NET + "def get_batch(path):\n    return path").message

    @pytest.mark.parametrize("text", ["float33[3]", "3,4", "float32(3)", ""])
    def test_unreadable_shapes(self, loaded: Loader, text: str) -> None:
        assert "cannot be read" in error_of(loaded, NET, inputs=(text,)).message

    def test_data_and_shapes_together(self, loaded: Loader) -> None:
        assert "exclude" in error_of(loaded, NET, inputs=("float32[3,4]",), data="x.pt").message

    def test_no_input_can_be_made_up(self, loaded: Loader) -> None:
        error = error_of(loaded, NET.replace("self.head(", "self.head(x['a'] + "))
        assert "no input was found" in error.message and "--input" in error.hint


class TestLossAndOptimizer:
    def test_a_loss_that_cannot_be_inferred(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "batch = (torch.randn(16, 4), torch.randn(16, 5))")
        assert "output is float32 [16, 3], the target float32 [16, 5]" in error.message and "--loss" in error.hint

    def test_unknown_names(self, loaded: Loader) -> None:
        assert "did you mean 'cross_entropy'" in error_of(loaded, NET, loss="cros_entropy").hint
        assert "did you mean rmsprop" in error_of(loaded, NET, optimizer="rmsprp").hint
        assert "has no nothing" in error_of(loaded, NET, loss="model.py:nothing").message

    def test_a_loss_that_is_no_scalar(self, loaded: Loader) -> None:
        w = loaded(NET + BATCH + "criterion = nn.CrossEntropyLoss(reduction='none')")
        with pytest.raises(TargetError, match=r"scalar tensor, not a tensor of shape \[16\]"):
            w.training_step(w.model, w.batches[0])

    def test_an_optimizer_function_that_raises_or_returns_nothing(self, loaded: Loader) -> None:
        error = error_of(loaded, NET + "def make_optimizer(model):\n    return torch.optim.SGD(model.nothing)")
        assert "nothing" in error.message and place(error) == ("model.py", 15)
        assert "gives NoneType" in error_of(loaded, NET + "def make_optimizer(model):\n    pass").message

    def test_two_optimizers(self, loaded: Loader) -> None:
        source = "def configure_optimizers(model):\n    return [torch.optim.SGD(model.parameters()), torch.optim.Adam(model.parameters())]"
        assert "2 optimizers" in error_of(loaded, NET + source).message


def test_ctrl_c_is_not_swallowed(loaded: Loader) -> None:
    with pytest.raises(KeyboardInterrupt):
        loaded("raise KeyboardInterrupt")
