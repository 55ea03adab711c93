from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks

from gradcheck.instrument.activation_recorder import HEADS, ActivationRecorder, Call
from gradcheck.instrument.first_pass_recorder import FirstPassRecorder
from tests.instrument.models import MODELS, Autocast, Chain, Checkpointed, Twice, Unregistered
from tests.measure import obvious


def tapped(
    model: nn.Module,
    x: torch.Tensor,
    *,
    taps: type[ActivationRecorder] = ActivationRecorder,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> list[Call]:
    """The calls of one forward and backward pass."""
    names = {id(m): name for name, m in model.named_modules()}
    with taps(names) as watching:
        value = (loss or _total)(model(x))
    value.backward()
    watching.settle()
    return watching.calls


def _total(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        if isinstance(output, dict):
            output = next(iter(output.values()))
        elif hasattr(output, "logits"):
            output = output.logits
        else:
            output = output[0]
    return output.float().square().sum()


def by_name(calls: list[Call]) -> dict[str, Call]:
    assert len({c.name for c in calls}) == len(calls)
    return {c.name: c for c in calls}


def sample(name: str) -> torch.Tensor:
    shape = {"in-place and view": (2, 3, 6, 6), "attention": (2, 5, 8)}.get(name, (4, 8))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("taps", [ActivationRecorder, FirstPassRecorder])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_bit_for_bit_those_without_taps(name: str, taps: type[ActivationRecorder]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    torch.manual_seed(7)
    _total(model(sample(name))).backward()
    bare = gradients(model)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    calls = tapped(model, sample(name), taps=taps)
    assert calls
    for key, gradient in gradients(model).items():
        expected = bare[key]
        assert (gradient is None) == (expected is None), key
        assert gradient is None or expected is None or torch.equal(gradient, expected), key


def test_outputs_and_gradients_are_those_before_a_change_in_place() -> None:
    torch.manual_seed(0)
    model, x = Chain(), sample("in-place and view")
    calls = by_name(tapped(model, x))
    model.body[2] = nn.ReLU()  # not in place: every value can be kept
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        output.retain_grad()
        kept[name] = output

    handles = [m.register_forward_hook(lambda m, a, y, n=n: keep(n, y)) for n, m in model.named_modules()]  # type: ignore[misc]
    _total(model(x)).backward()
    for handle in handles:
        handle.remove()
    for name in ("body.0", "body.1", "body.2", "head"):
        obvious.assert_same(calls[name].output, obvious.stats(kept[name]))
        gradient = kept[name].grad
        assert gradient is not None
        obvious.assert_same(calls[name].gradients[0], obvious.stats(gradient))
    assert calls["body.1"].output is not None and calls["body.1"].output.min < 0
    assert calls["body.2"].output is not None and calls["body.2"].output.min == 0


def test_a_module_that_runs_twice_has_two_calls() -> None:
    calls = tapped(Twice(), sample(""))
    assert [c.name for c in calls if c.type == "Linear"] == ["linear", "linear", "tied"]
    assert all(len(c.gradients) == 1 for c in calls if c.type == "Linear")


@pytest.mark.parametrize("name", ["tuple", "dict", "dataclass", "named tuple", "nested"])
def test_the_first_floating_tensor_of_a_structure_is_measured(name: str) -> None:
    torch.manual_seed(0)
    calls = by_name(tapped(MODELS[name](), sample(name)))
    inner, linear = calls["inner"].output, calls["inner.linear"].output
    assert inner is not None and linear is not None
    assert inner.norm == pytest.approx(2 * linear.norm)
    assert len(calls["inner"].gradients) == 1


def test_a_container_that_hands_on_its_last_layer_is_not_measured_twice() -> None:
    calls = by_name(tapped(Chain(), sample("in-place and view")))
    assert calls["body"].output is None
    assert calls["body"].gradients == []


def test_functional_calls_are_named_after_their_module() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.weight = nn.Parameter(torch.randn(3, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.a(x))
            y = torch.sigmoid(y) + y.clamp(min=0)
            y = y.relu()
            made = self.weight @ self.weight.t()  # a weight of weights: no activation passes through it
            return F.linear(y, self.weight) * made.mean() + (x @ x.T)[:, :3]

    calls = by_name(tapped(Functional(), sample("")))
    assert list(calls) == ["a", ":relu", ":sigmoid", ":relu#2", ":relu#3", ":linear", ""]
    assert calls[":relu"].function == "relu"
    assert calls[":relu"].site is not None and calls[":relu"].site.path.endswith("test_activation_recorder.py")
    assert calls[":relu"].site.line < calls[":relu#3"].site.line  # type: ignore[union-attr]
    assert calls[":linear"].weight is not None
    assert all(c.output is not None and c.gradients for name, c in calls.items() if name)


def test_functions_inside_a_leaf_layer_are_not_calls_of_their_own() -> None:
    calls = by_name(tapped(MODELS["attention"](), sample("attention")))
    assert "self_attn" in calls
    assert not any(name.startswith("self_attn") and ":" in name for name in calls)


def test_without_functional_taps_only_modules_are_seen() -> None:
    model = Twice()
    names = {id(m): name for name, m in model.named_modules()}
    with ActivationRecorder(names, functions=False) as taps:
        model(sample("")).sum().backward()
    assert {c.name for c in taps.calls} == {"", "linear", "tied"}


def test_modules_that_the_model_does_not_list_are_found() -> None:
    model = Unregistered()
    names = {id(m): name for name, m in model.named_modules()}
    with ActivationRecorder(names) as taps:
        model(sample("")).sum().backward()
    assert list(taps.hidden.values()) == model.layers
    assert [c.name for c in taps.calls[:3]] == ["first", "(unregistered Linear 0)", "(unregistered Linear 1)"]


def test_modules_that_run_outside_the_model_are_not_recorded() -> None:
    model, other = nn.Linear(8, 3), nn.Linear(3, 3)
    calls = tapped(model, sample(""), loss=lambda y: other(y).sum())
    assert [c.name for c in calls] == [""]


def test_activations_tell_which_units_live_and_how_saturated_they_are() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, -1.0, -1.0, 2.0, -1.0, -1.0]))
        model[2].weight.mul_(100)
    calls = by_name(tapped(model, sample("")))
    assert calls["1"].alive is not None and calls["1"].alive.tolist() == [True, False, False, True, False, False]
    assert calls["1"].effective_samples == 4
    assert calls["3"].saturated is not None and calls["3"].saturated.item() > 0.5
    assert calls["1"].saturated is None


def test_units_behind_a_convolution_are_its_channels() -> None:
    calls = by_name(tapped(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), sample("in-place and view")))
    assert calls["1"].alive is not None and len(calls["1"].alive) == 6
    assert calls["1"].effective_samples == 2 * 4 * 4


def test_samples_are_compared_in_the_last_linear_layers() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(HEADS + 3)])
    x = sample("")
    calls = tapped(model, x)
    kept = [c.sample_cosine is not None for c in calls if c.type == "Linear"]
    assert kept == [False] * 3 + [True] * HEADS


def test_in_autocast_the_short_floats_are_measured() -> None:
    calls = by_name(tapped(Autocast(), sample("")))
    assert calls["body.0"].output is not None and calls["body.0"].output.count == 32
    assert calls["body.0"].gradients[0].norm > 0


def test_a_checkpointed_block_is_measured() -> None:
    calls = by_name(tapped(Checkpointed(False), sample("")))
    assert calls["block.0"].output is not None
    assert len(calls["block.0"].gradients) == 1


def test_a_reentrant_checkpoint_hides_the_gradients_inside_it() -> None:
    calls = by_name(tapped(Checkpointed(True), sample("")))
    assert calls["block.0"].output is not None
    assert calls["block.0"].gradients == []
    assert len(calls["first"].gradients) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_script_module_inside_is_measured_as_a_whole_or_not_at_all() -> None:
    inner = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    model = nn.Sequential(nn.Linear(8, 8), inner, nn.Linear(8, 3))
    calls = {c.name: c for c in tapped(model, sample(""))}
    assert calls["0"].gradients and calls["2"].gradients


def test_a_compiled_model_is_measured_through_its_original() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), backend="eager")
    with torch.compiler.set_stance("force_eager"):
        calls = by_name(tapped(model, sample("")))
    assert {"_orig_mod.0", "_orig_mod.1", "_orig_mod.2"} <= calls.keys()
    assert calls["_orig_mod.0"].gradients


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind_when_the_pass_raises(error: type[BaseException]) -> None:
    class Raises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    model = nn.Sequential(nn.Linear(8, 8), Raises())
    before = _global_hooks()
    with pytest.raises(error):
        tapped(model, sample(""), taps=FirstPassRecorder)
    assert _global_hooks() == before
    assert torch.overrides._get_current_function_mode() is None


def test_what_ran_before_an_exception_is_measured() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(3, 3))
    names = {id(m): name for name, m in model.named_modules()}
    taps = ActivationRecorder(names)
    with pytest.raises(RuntimeError), taps:
        model(sample(""))
    assert [c.name for c in taps.calls] == ["0", "1"]
    assert all(c.output is not None for c in taps.calls)


def _global_hooks() -> list[int]:
    tables = (module_hooks._global_forward_hooks, module_hooks._global_forward_pre_hooks, module_hooks._global_backward_hooks)
    return [len(t) for t in tables] + [len(module_hooks._global_forward_hooks_with_kwargs)]


def test_the_hooks_of_the_user_still_run() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model[0].register_forward_hook(lambda m, a, y: seen.append("forward"))
    model[0].register_full_backward_hook(lambda m, g, o: seen.append("backward"))
    calls = by_name(tapped(model, sample("")))
    assert seen == ["forward", "backward"]
    assert calls["0"].gradients


def test_integer_and_boolean_outputs_are_passed_over() -> None:
    class Ids(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids, self.table, self.none = Ids(), nn.Embedding(8, 4), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.none(None)
            return self.table(self.ids(x))

    calls = by_name(tapped(Both(), sample("")))
    assert list(calls) == ["table", ""]


def test_sparse_gradients_and_empty_tensors_do_no_harm() -> None:
    class Routed(nn.Module):
        """An expert that no sample is sent to."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.expert = nn.Embedding(5, 8, sparse=True), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.table(torch.tensor([0, 1]))
            return torch.cat([y, F.relu(self.expert(y[:0]))])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls = by_name(tapped(Routed(), sample("")))
    assert calls["expert"].output is None
    assert calls["table"].gradients


def test_functions_inside_leaf_modules_do_not_pass_through_the_recorder():
    class Counting(ActivationRecorder):
        pass

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    x, depths = torch.randn(2, 1, 8, 8), []
    model[1].register_forward_pre_hook(lambda *_: depths.append(torch._C._len_torch_function_stack()))
    for kind in (ActivationRecorder, Counting):  # recorders of other kinds look into them
        with kind({id(m): name for name, m in model.named_modules()}) as taps:
            F.relu(model(x))
            assert torch._C._len_torch_function_stack() == 1
        assert [c.name for c in taps.calls] == ["0", "1", "2", ""]
    assert depths == [0, 1] and torch._C._len_torch_function_stack() == 0


def test_a_leaf_module_that_raises_leaves_no_mode_behind():
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), ActivationRecorder({id(model): ""}):
        model(torch.randn(3, 3))
    assert torch._C._len_torch_function_stack() == 0
