"""Copies that refer to nothing of the original's, whatever way a model refers to its parts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradcheck.errors import TargetError
from gradcheck.workload.copying import bound, duplicate, memo_for


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"up": nn.Linear(4, 4), "down": nn.Linear(4, 4)})
        self.use: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(x)


def by_lambda(net: Base) -> None:
    parts = net.parts
    net.use = lambda x: parts["down"](parts["up"](x))


def by_lambdas_over_a_new_container(net: Base) -> None:
    rest = nn.Sequential(net.parts["up"], net.parts["down"])
    net.run = lambda x: rest(x)  # type: ignore[assignment]
    net.use = lambda x: net.run(x)  # type: ignore[operator]


def by_partial(net: Base) -> None:
    net.use = functools.partial(lambda layer, x: layer(x), net.parts["up"])


def by_partial_of_a_closure(net: Base) -> None:
    up = net.parts["up"]
    net.use = functools.partial(lambda scale, x: up(scale * x), 2.0)


def by_bound_method(net: Base) -> None:
    net.use = net.parts["down"].forward


def by_list_of_functions(net: Base) -> None:
    up, down = net.parts["up"], net.parts["down"]
    net.steps = [lambda x: up(x), lambda x: down(x)]
    net.use = lambda x: net.steps[1](net.steps[0](x))


def by_tuple_of_functions(net: Base) -> None:
    up = net.parts["up"]
    net.steps = (lambda x: up(x),)
    net.use = lambda x: net.steps[0](x)


def by_default_argument(net: Base) -> None:
    def use(x: torch.Tensor, layer: nn.Module = net.parts["up"]) -> torch.Tensor:
        return layer(x)

    net.use = use


def by_nested_closures(net: Base) -> None:
    def outer() -> Callable[[torch.Tensor], torch.Tensor]:
        layer = net.parts["up"]
        return lambda x: layer(x)

    inner = outer()
    net.use = lambda x: inner(x)


def by_hook(net: Base) -> None:
    down = net.parts["down"]
    net.use = net.parts["up"]
    net.register_forward_hook(lambda module, args, output: down(output))


def by_plain_object(net: Base) -> None:
    class Holder:
        pass

    holder = Holder()
    up = net.parts["up"]
    holder.run = lambda x: up(x)  # type: ignore[attr-defined]
    net.holder = holder  # type: ignore[assignment]
    net.use = lambda x: net.holder.run(x)  # type: ignore[operator]


def by_parametrization(net: Base) -> None:
    net.use = nn.utils.parametrizations.orthogonal(net.parts["up"])


def by_state_with_a_graph(net: Base) -> None:
    net.state = (2 * torch.ones(1, 4, requires_grad=True), None)  # type: ignore[assignment]
    net.use = lambda x: net.parts["up"](x + net.state[0].detach())  # type: ignore[index]


WAYS = [value for name, value in sorted(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_copy_calls_its_own_parts_only(way: Callable[[Base], None]) -> None:
    torch.manual_seed(0)
    net = Base()
    way(net)
    once = duplicate(net, net)
    twin = duplicate(once, once)
    called: list[nn.Module] = []
    handle = register_module_forward_pre_hook(lambda module, _: called.append(module))
    try:
        output = twin(torch.ones(2, 4))
    finally:
        handle.remove()
    assert not {id(m) for m in called} & {id(m) for other in (net, once) for m in other.modules()}
    assert torch.equal(output, net(torch.ones(2, 4)))
    output.sum().backward()
    assert all(p.grad is None for m in (net, once) for p in m.parameters())
    assert any(p.grad is not None for p in twin.parameters())


def test_a_container_that_a_hook_fills_is_the_copy_s_own() -> None:
    net, seen = nn.Linear(2, 2), []
    net.register_forward_hook(lambda module, args, output: seen.append(output))
    duplicate(net, net)(torch.ones(1, 2))
    assert seen == []


def test_functions_that_refer_to_nothing_copied_stay_the_same() -> None:
    net = Base()
    net.use = torch.nn.functional.relu
    assert duplicate(net, net).use is torch.nn.functional.relu

    def plain(x: int) -> int:
        return x + len(WAYS)

    assert bound(plain, {}) is plain or WAYS  # a list of the module is copied, its functions are not
    assert bound(by_hook, {}) is by_hook


def test_what_cannot_be_copied_is_one_error() -> None:
    net = Base()
    net.use = (x for x in ())
    with pytest.raises(TargetError, match="the model cannot be copied: TypeError"):
        duplicate(net, net)


def test_empty_tables_are_made_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20
    model, shared = nn.Sequential(*(nn.Linear(2, 2) for _ in range(count))), dict[str, int]()
    model[0].cache = model[1].cache = shared
    rebuilt = []
    rebuild = copy._reconstruct  # type: ignore[attr-defined]
    monkeypatch.setattr(copy, "_reconstruct", lambda *a, **k: rebuilt.append(a) or rebuild(*a, **k))
    twin = duplicate(model, model)
    assert len(rebuilt) == 1  # the one that holds the others; each has ten tables
    assert twin[0].cache is twin[1].cache is not shared
    twin[0].register_forward_hook(lambda *_: None)
    assert not model[0]._forward_hooks and not twin[1]._forward_hooks


class Metric(nn.Module):
    """Wraps its own method on each instance, a copy included."""

    def __init__(self) -> None:
        super().__init__()
        self.wrap()

    def wrap(self) -> None:
        self.update = functools.wraps(type(self).update)(lambda: self)

    def update(self) -> Any: ...

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({k: v for k, v in state.items() if k != "update"})
        self.wrap()


def test_a_copy_that_wraps_its_methods_anew_is_copied_once() -> None:
    net = nn.ModuleList([Metric()])
    (twin,) = duplicate(net, net)
    assert twin.update() is twin


def test_attributes_of_parameters_are_copied() -> None:
    net = nn.Linear(2, 2)
    net.weight.scale, net.weight.seen = 0.5, []  # type: ignore[attr-defined]
    twin: Any = duplicate(net, net)
    twin.weight.seen.append(1)
    assert twin.weight.scale == 0.5 and net.weight.seen == []  # type: ignore[attr-defined]


def test_layers_copied_one_root_after_another_share_what_the_originals_share() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.weight = one.weight
    memo = memo_for(one)
    memo_for(two, memo)
    first, second = copy.deepcopy([one, two], memo)
    assert first.weight is second.weight is not one.weight and second.bias is not two.bias
    assert first.weight.equal(one.weight) and first.training and not first._forward_hooks


def test_which_weight_is_which_is_not_guessed_of_a_model_that_copies_itself() -> None:
    class Remade(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            return Remade(nn.Linear(2, 2))

    with pytest.raises(TargetError, match="which weight of a copy is which"):
        duplicate(model := Remade(nn.Linear(2, 2)), model)
