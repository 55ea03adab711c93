"""Treatments of normalization layers that are in the wrong mode, or average over the wrong time."""

import ast
import copy
from collections.abc import Sequence
from typing import Any

import torch

from gradcheck.remedies.definition import wiring
from gradcheck.remedies.layer_selection import listed
from gradcheck.remedies.modules.rewriting import Method, bind, own_methods
from gradcheck.remedies.modules.surgery import module_at, path_now
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.training_copy import set_mode
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

MOMENTUM = 0.1  # torch's default: weight of the newest batch


@wiring("training-mode", "training mode of normalizations", "Ioffe and Szegedy 2015, Batch Normalization, section 3.1")
def training_mode(finding: Finding | None, m: Measurement) -> list[Fix]:
    """All that are held in evaluation mode; a loop that leaves the whole model in it is the user's to change."""
    if finding is None or not finding.layers or m.loop is not None:
        return []
    frozen = [n.layer for n in m.norms if not n.of_batch and n.fresh and n.trains]
    layers = tuple(dict.fromkeys(frozen)) if set(finding.layers) <= set(frozen) else finding.layers
    return [training_mode.fix(f"leave {listed(layers)} in training mode while training", finding, layers=layers)]


@training_mode.applies
def put_into_training(treated: TreatedWorkload, p: Fix) -> None:
    """Puts them into training mode; where a method of the model takes them out of it, its calls follow the mode of their module."""
    wanted = {path_now(treated, name) for name in p.layers}
    _wake(treated, p.layers)
    modes = _modes_after_step(treated)
    for index in range(len(own_methods(treated))):
        trial = treated.copy()
        if not _follows(own_methods(trial)[index]):
            continue
        _wake(trial, p.layers)  # a `train` method of the user's put them to sleep when the copy was made
        after = _modes_after_step(trial)
        moved = {name for name in modes if after[name] != modes[name]}
        if moved and moved <= wanted:
            _follows(own_methods(treated)[index])
            modes = after
    if not all(modes[name] for name in wanted):
        raise Inapplicable("what puts them into evaluation mode is not a call of eval() on them alone")


def _wake(treated: TreatedWorkload, names: Sequence[str]) -> None:
    for name in names:
        set_mode(module_at(treated, name), True)


def _modes_after_step(treated: TreatedWorkload) -> dict[str, bool]:
    """Module -> whether it is in training mode after a training step of a copy."""
    twin = treated.copy()
    with preserve_rng(), torch.no_grad():
        twin.workload.training_step(twin.model, twin.workload.batches[0])
    return {name: module.training for name, module in twin.model.named_modules()}


def _follows(method: Method) -> bool:
    """Changes x.eval() and x.train(False) of a method into x.train(self.training); False where there is none."""
    tree = copy.deepcopy(method.tree)
    owner = tree.args.args[0].arg if tree.args.args else ""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _switches_off(n, owner)]
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        call.func.attr, call.keywords = "train", []
        call.args = [ast.Attribute(ast.Name(owner, ast.Load()), "training", ast.Load())]
    if calls:
        bind(method, tree)
    return bool(calls)


def _switches_off(call: ast.Call, owner: str) -> bool:
    """x.eval(), x.train(False), x.train(mode=False), for an x other than the module itself."""
    if not isinstance(call.func, ast.Attribute) or ast.unparse(call.func.value) in (owner, "super()"):
        return False
    given = [*call.args, *(k.value for k in call.keywords)]
    if call.func.attr == "eval":
        return not given
    return call.func.attr == "train" and len(given) == 1 and isinstance(given[0], ast.Constant) and given[0].value is False


@wiring("default-momentum", "usual momentum of running statistics", "Ioffe and Szegedy 2015, Batch Normalization, section 3.1")
def default_momentum(finding: Finding | None, m: Measurement) -> list[Fix]:
    layers = finding.layers if finding is not None else ()
    settings: dict[str, Setting] = {"momentum": MOMENTUM}
    text = f"set the momentum of {listed(layers)} to {MOMENTUM:g}, torch's default"
    return [default_momentum.fix(text, finding, layers=layers, settings=settings)] if layers else []


@default_momentum.applies
def set_momentum(treated: TreatedWorkload, p: Fix) -> None:
    for name in p.layers:
        module: Any = module_at(treated, name)
        if not hasattr(module, "momentum"):
            raise Inapplicable(f"{name} has no momentum")
        module.momentum = float(p.settings["momentum"])


REMEDIES = (training_mode, default_momentum)
