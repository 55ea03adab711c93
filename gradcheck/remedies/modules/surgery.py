"""Exchanging modules of a copy: everywhere they are used, with the optimizer and the creation sites kept in step.

Treatments name layers as the measurement does. A wrapped layer has another path afterwards; `module_at` follows it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.training_copy import set_mode
from gradcheck.workload.treated import Inapplicable, TreatedWorkload


def path_now(treated: TreatedWorkload, name: str) -> str:
    """The path that a module of the measurement has in the copy."""
    for old, new in treated.renames:
        if name == old or name.startswith(f"{old}."):
            name = new + name[len(old) :]
    return name


def module_at(treated: TreatedWorkload, name: str) -> nn.Module:
    """The module of that name. Raises Inapplicable when there is none, as for a call inside a forward method."""
    if ":" in name:
        raise Inapplicable(f"{name} is a function call, not a module")
    try:
        return treated.model.get_submodule(path_now(treated, name))
    except AttributeError:
        raise Inapplicable(f"the model has no module {name}") from None


def parameter_at(treated: TreatedWorkload, name: str) -> nn.Parameter:
    """The parameter of that name. Raises Inapplicable."""
    holder, _, local = name.rpartition(".")
    found = getattr(module_at(treated, holder), local, None)
    if not isinstance(found, nn.Parameter):
        raise Inapplicable(f"the model has no parameter {name}")
    return found


def swap(treated: TreatedWorkload, name: str, new: nn.Module) -> None:
    """Puts `new` wherever the named module is: tied places, and plain lists that refer to it, too."""
    old = module_at(treated, name)
    if old is treated.model:
        raise Inapplicable("it is the whole model")
    for parent in list(treated.model.modules()):
        if isinstance(parent, torch.jit.ScriptModule):
            raise Inapplicable("the model is compiled to TorchScript")
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
        for value in vars(parent).values():
            _swap_in_plain(value, old, new)
    set_mode(new, old.training)
    _inherit_site(treated, old, new)


def _swap_in_plain(value: Any, old: nn.Module, new: nn.Module) -> None:
    if isinstance(value, list):
        value[:] = [new if item is old else item for item in value]
    elif isinstance(value, dict):
        for key in [k for k, item in value.items() if item is old]:
            value[key] = new


def wrap(treated: TreatedWorkload, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    """Puts `make(module)`, which holds the module, in its place."""
    old = module_at(treated, name)
    new = make(old)
    inner = next(path for path, module in new.named_modules() if module is old)
    here = path_now(treated, name)
    swap(treated, name, new)
    treated.renames.append((here, f"{here}.{inner}"))


def follow(treated: TreatedWorkload, name: str, new: nn.Module) -> None:
    """Puts `new` after the named module: Sequential(module, new)."""
    like(new, module_at(treated, name))
    wrap(treated, name, lambda old: nn.Sequential(old, new))


def like(new: nn.Module, old: nn.Module) -> nn.Module:
    """Moves `new` to the device and the floating type of the tensors of `old`."""
    model = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    return new.to(model.device, model.dtype) if model is not None else new


def _inherit_site(treated: TreatedWorkload, old: nn.Module, new: nn.Module) -> None:
    place = treated.workload.sites.get(id(old))
    if place is not None:
        made = {id(m): place for m in new.modules() if id(m) not in treated.workload.sites}
        treated.workload.sites = {**treated.workload.sites, **made}


# ------------------------------------------------------------------------------ optimizer


@contextmanager
def rewired(treated: TreatedWorkload) -> Iterator[None]:
    """After the changes made inside, the optimizer holds the parameters that the model has, and a training step still runs.

    Raises Inapplicable when it does not.
    """
    before = {id(p) for p in treated.model.parameters()}
    yield
    sync_optimizer(treated, before)
    require_running(treated)


def sync_optimizer(treated: TreatedWorkload, before: set[int]) -> None:
    """Parameters that left the model leave the optimizer, with their state; new ones join the group of their neighbours."""
    listed = {id(p) for p in treated.model.parameters()}
    remove_parameters(treated, before - listed)
    join(treated, [p for p in treated.model.parameters() if id(p) not in before])


def remove_parameters(treated: TreatedWorkload, gone: set[int]) -> None:
    """Takes parameters, by id, out of every group."""
    optimizer = treated.optimizer
    for group in optimizer.param_groups:
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        _set_parameters(group, kept)
    for p in [p for p in optimizer.state if isinstance(p, torch.Tensor) and id(p) in gone]:
        del optimizer.state[p]
    _refresh(optimizer)


def _set_parameters(group: dict[str, Any], kept: Iterable[int]) -> None:
    """Keeps the parameters at these indices of a group; their names too, where torch was given any."""
    kept = list(kept)
    for key in ("params", "param_names"):
        if key in group:
            group[key] = [group[key][i] for i in kept]


def join(treated: TreatedWorkload, parameters: Iterable[nn.Parameter]) -> None:
    """Adds trainable parameters, those that no group holds yet, to the group that fits."""
    groups = treated.optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    names = {id(p): name for name, p in treated.model.named_parameters()}
    for p in parameters:
        if p.requires_grad and id(p) not in held:
            group = _group_for(p, names, groups)
            group["params"].append(p)
            if "param_names" in group:
                group["param_names"].append(names[id(p)])
            held.add(id(p))
    _refresh(treated.optimizer)


def _group_for(p: nn.Parameter, names: dict[int, str], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The group of the nearest parameter that is a matrix where this one is, and a vector where this one is."""
    order = {key: i for i, key in enumerate(names)}
    path = names[id(p)].split(".")

    def nearness(other: nn.Parameter) -> tuple[bool, int, int]:
        its = names.get(id(other), "").split(".")
        shared = next((i for i, (a, b) in enumerate(zip(path, its, strict=False)) if a != b), min(len(path), len(its)))
        return (other.dim() > 1) == (p.dim() > 1), shared, -abs(order.get(id(other), len(order)) - order[id(p)])

    ranked = [(nearness(other), i) for i, group in enumerate(groups) for other in group["params"]]
    return groups[max(ranked)[1]] if ranked else groups[0]


def _refresh(optimizer: torch.optim.Optimizer) -> None:
    """LBFGS keeps a list of its own; Adagrad of torch 2.6 makes its state with the optimizer, not in the first step."""
    if isinstance(optimizer, torch.optim.LBFGS):
        vars(optimizer).update(_params=optimizer.param_groups[0]["params"], _numel_cache=None)
    if isinstance(optimizer, torch.optim.Adagrad):
        for p in (p for group in optimizer.param_groups for p in group["params"] if not optimizer.state[p]):
            sums = torch.full_like(p, optimizer.defaults["initial_accumulator_value"])
            optimizer.state[p] = {"step": torch.zeros((), device=p.device if p.is_cuda else "cpu"), "sum": sums}


def require_running(treated: TreatedWorkload, watch: Callable[[TreatedWorkload], object] | None = None) -> None:
    """Runs the forward pass of a copy, which `watch` gets first. Raises Inapplicable with what the user's code says of the change."""
    if not treated.workload.batches:
        return
    with preserve_rng(), torch.no_grad():
        twin = treated.copy()
        if watch is not None:
            watch(twin)
        try:
            twin.workload.training_step(twin.model, twin.workload.batches[0])
        except Exception as error:
            raise Inapplicable(f"the model does not run with it: {type(error).__name__}: {error}") from error
