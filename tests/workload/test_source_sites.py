"""Creation expressions, and the lines of calls."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame, origin_of, record_sites
from gradcheck.workload.workload import Workload
from tests.loading.conftest import HEAD, Loader


def text_at(place: Location) -> str:
    """The source text that a one-line location spans."""
    line = Path(place.path).read_text(encoding="utf-8").splitlines()[place.line - 1]
    assert place.end_line == place.line
    return line[place.column - 1 : place.end_column - 1]


def site(workload: Workload, name: str) -> Location:
    return workload.sites[id(workload.model.get_submodule(name))]


class TestCreationExpressions:
    def test_a_layer_is_where_its_class_is_called(self, loaded: Loader) -> None:
        w = loaded(HEAD + "model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))")
        assert text_at(site(w, "0")) == "nn.Linear(4, 5)"
        assert text_at(site(w, "2")) == "nn.Linear(5, 2)"
        assert text_at(site(w, "")) == "nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))"
        assert site(w, "0").path == "model.py"

    def test_layers_of_a_loop_share_one_expression(self, loaded: Loader) -> None:
        w = loaded(HEAD + "layers = []\nfor _ in range(3):\n    layers.append(nn.Linear(4, 4))\nmodel = nn.Sequential(*layers)")
        assert site(w, "0") == site(w, "1") == site(w, "2")
        assert text_at(site(w, "1")) == "nn.Linear(4, 4)"

    def test_a_comprehension_and_a_subclass(self, loaded: Loader) -> None:
        w = loaded(
            HEAD
            + """
class Base(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

class Block(Base):
    def __init__(self, width):
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.linear(x))

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(*[Block(4) for _ in range(2)])

model = Net()
"""
        )
        assert text_at(site(w, "0")) == "Block(4)"
        assert text_at(site(w, "0.linear")) == "nn.Linear(width, width)"
        assert site(w, "0.linear").scope == "Base.__init__"
        assert text_at(site(w, "")) == "Net()"

    def test_a_decorated_constructor_is_not_the_site(self, loaded: Loader) -> None:
        w = loaded(
            HEAD
            + """
def logged(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

class Block(nn.Linear):
    @logged
    def __init__(self, width):
        super().__init__(width, width)

model = nn.Sequential(Block(4))
"""
        )
        assert text_at(site(w, "0")) == "Block(4)"

    def test_a_helper_function_is_where_the_layer_is_created(self, loaded: Loader) -> None:
        w = loaded(HEAD + "def layer(n):\n    return nn.Linear(n, n)\nmodel = nn.Sequential(layer(4), layer(4))")
        assert text_at(site(w, "1")) == "nn.Linear(n, n)"
        assert site(w, "1").scope == "layer"

    def test_columns_count_characters_not_bytes(self, loaded: Loader) -> None:
        w = loaded(HEAD + "größe = 4; model = nn.Sequential(nn.Linear(größe, größe))")
        assert text_at(site(w, "0")) == "nn.Linear(größe, größe)"

    def test_an_expression_over_several_lines(self, loaded: Loader) -> None:
        w = loaded(HEAD + "model = nn.Sequential(\n    nn.Linear(\n        4,\n        2,\n    ),\n)")
        place = site(w, "0")
        assert (place.end_line - place.line, place.column, place.end_column) == (3, 5, 6)

    def test_layers_of_a_package_point_at_the_user_s_line_with_the_package_s_as_detail(self, loaded: Loader) -> None:
        w = loaded(
            HEAD
            + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    def forward(self, x):
        return self.block(x)
"""
        )
        place = site(w, "block.linear1")
        assert text_at(place) == "nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)"
        assert place.detail is not None and place.detail.path.endswith("transformer.py")
        assert site(w, "block").detail is None

    def test_clones_are_where_their_original_was_created(self, loaded: Loader) -> None:
        w = loaded(HEAD + "layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)\nmodel = nn.TransformerEncoder(layer, 2)")
        assert text_at(site(w, "layers.1")) == "nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)"
        assert text_at(site(w, "layers.0.linear1")) == "nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)"

    def test_equal_files_keep_their_own_paths(self, write: object, loaded: Loader) -> None:
        source = HEAD + "model = nn.Sequential(nn.Linear(4, 2))"
        first = loaded(source)
        write(source, "other.py")  # type: ignore[operator]
        second = loaded(source, target="other.py")
        assert (site(first, "0").path, site(second, "0").path) == ("model.py", "other.py")


class TestRecording:
    def test_torch_is_as_before_afterwards_also_after_an_exception(self) -> None:
        constructor, restore = nn.Module.__init__, nn.Module.__setstate__
        with pytest.raises(RuntimeError), record_sites():
            assert nn.Module.__init__ is not constructor
            raise RuntimeError
        assert nn.Module.__init__ is constructor and nn.Module.__setstate__ is restore

    def test_a_dead_module_s_place_is_not_given_to_another(self) -> None:
        with record_sites() as sites:
            for _ in range(50):
                nn.Linear(1, 1)
        assert all(sites.get(m) is None for m in [nn.Linear(1, 1) for _ in range(50)])

    def test_a_copy_made_by_hand_keeps_the_place(self) -> None:
        with record_sites() as sites:
            layer = nn.Linear(2, 2)
            twin = copy.deepcopy(layer)
        assert sites.get(layer) == sites.get(twin) is not None


class TestCalls:
    def test_a_functional_call_is_at_the_user_s_expression(self, loaded: Loader) -> None:
        seen: list[Location | None] = []
        w = loaded(
            HEAD
            + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
    def forward(self, x):
        return F.relu(self.linear(x))
"""
        )

        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                if function is torch.nn.functional.relu:
                    seen.append(location_of_frame(sys._getframe(1)))
                return function(*args, **(kwargs or {}))

        with Mode():
            w.model(torch.randn(2, 4))
        assert seen[0] is not None and text_at(seen[0]) == "F.relu(self.linear(x))"
        assert seen[0].scope == "Net.forward" and seen[0].detail is None

    def test_whose_code_a_file_is(self) -> None:
        import gradcheck.measure
        import gradcheck.workload.step

        assert origin_of(torch.nn.functional.__file__) == "torch"
        assert origin_of(pytest.__file__) == "package"
        assert origin_of(copy.__file__) == "package"
        assert origin_of(__file__) == "user"
        assert origin_of("<string>") == "hidden"
        assert origin_of(gradcheck.workload.step.__file__) == "gradcheck"
        assert origin_of(str(gradcheck.measure.__file__)) == "tap"
