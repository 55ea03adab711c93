"""What each layer costs: parameters, FLOPs, activation memory, forward and backward time. It takes a pass of its own."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gradcheck.types.layers import Profile
from gradcheck.workload.device import synchronize
from gradcheck.workload.tensors import tensors_in
from gradcheck.workload.training_copy import TrainingCopy

REPEATS = 3  # timed passes, after one to warm up; the median is reported


@dataclass
class _Costs:
    flops: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    forward: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    backward: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def profile(copy: TrainingCopy, batch: Any) -> dict[str, Profile]:
    """Costs by module name. Backward time runs from the gradient of a module's output to the gradient of its input."""
    costs = _Costs()
    names = {id(m): name for name, m in copy.model.named_modules()}
    _count(copy, batch, names, costs)
    _pass(copy, batch)
    for _ in range(REPEATS):
        with _timers(names, costs):
            _pass(copy, batch)
    return {name: _profile(name, module, costs) for name, module in copy.model.named_modules() if name in costs.forward}


def _profile(name: str, module: nn.Module, costs: _Costs) -> Profile:
    backward = costs.backward.get(name)
    return Profile(
        sum(p.numel() for p in module.parameters()),
        costs.flops.get(name, 0),
        costs.bytes.get(name, 0),
        1000 * sum(costs.forward[name]) / REPEATS,
        1000 * median(backward) if backward else None,
    )


def _pass(copy: TrainingCopy, batch: Any) -> None:
    copy.optimizer.zero_grad(set_to_none=True)
    loss = copy.loss(batch)
    if loss.requires_grad:
        loss.backward()


class _FlopMode(TorchDispatchMode):
    """Counts by torch's own formulas, for every module on the stack."""

    def __init__(self, stack: list[str], costs: _Costs) -> None:
        super().__init__()
        self.stack, self.costs = stack, costs

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None and self.stack:
            flops = int(formula(*args, **(kwargs or {}), out_val=output))
            for name in set(self.stack):
                self.costs.flops[name] += flops
        return output


def _count(copy: TrainingCopy, batch: Any, names: dict[int, str], costs: _Costs) -> None:
    """FLOPs and activation memory of one forward pass."""
    stack: list[str] = []

    def before(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            stack.append(names[id(module)])

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in names and stack:
            costs.bytes[stack.pop()] += sum(t.numel() * t.element_size() for t in tensors_in(output) if t.requires_grad)

    with register_module_forward_pre_hook(before), register_module_forward_hook(after), _FlopMode(stack, costs):
        copy.loss(batch)


@contextmanager
def _timers(names: dict[int, str], costs: _Costs) -> Iterator[None]:
    started: list[tuple[int, float]] = []

    def before(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            _synchronize(args)
            started.append((id(module), time.perf_counter()))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if not started or started[-1][0] != id(module):
            return
        name = names[id(module)]
        _synchronize(output)
        costs.forward[name].append(time.perf_counter() - started.pop()[1])
        arrived: list[float] = []
        result = next((t for t in tensors_in(output) if t.requires_grad), None)
        source = next((t for t in tensors_in(args) if t.requires_grad), None)
        if result is not None and source is not None and source is not result:
            result.register_hook(lambda g: arrived.append(time.perf_counter()))
            source.register_hook(lambda g: costs.backward[name].append(time.perf_counter() - arrived[-1]) if arrived else None)

    with register_module_forward_pre_hook(before), register_module_forward_hook(after):
        yield


def _synchronize(value: Any) -> None:
    tensor = next(tensors_in(value), None)
    if tensor is not None:
        synchronize(tensor.device)
