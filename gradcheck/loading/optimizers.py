"""Which optimizer trains the model: the file's, one by name, or AdamW as an assumption; and the clipping that names in the file tell of."""

import ast
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from gradcheck.errors import TargetError, closest
from gradcheck.types.location import Location
from gradcheck.types.measurement import Assumption
from gradcheck.workload.source_sites import display_path, failure
from gradcheck.workload.trial_pass import Maker
from gradcheck.workload.workload import Clipping

Optimizer = torch.optim.Optimizer


def optimizer_by_name(name: str, lr: float | None) -> Maker:
    """An optimizer class of torch.optim, case ignored. Raises TargetError for other names."""
    classes = {
        n.lower(): c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, Optimizer) and c is not Optimizer
    }
    found = classes.get(name.strip().lower())
    if found is None:
        near = closest(name, classes)
        suggestion = f"did you mean {near}? " if near else ""
        raise TargetError(f"unknown optimizer {name!r}", hint=f"{suggestion}choose one of {', '.join(sorted(classes))}, or FILE.py:name")
    settings: dict[str, Any] = {} if lr is None else {"lr": lr}

    def make(model: nn.Module) -> tuple[Optimizer, Assumption]:
        try:
            optimizer = found(trainable(model), **settings)
        except (TypeError, ValueError) as error:
            raise TargetError(f"--optimizer {name} cannot be built: {error}", hint="give another --lr or optimizer") from error
        return optimizer, Assumption("optimizer", f"optimizer: {found.__name__}, lr {rate_of(optimizer):g}, as asked", given=True)

    return make


def assumed_optimizer(lr: float | None) -> Maker:
    def make(model: nn.Module) -> tuple[Optimizer, Assumption]:
        optimizer = torch.optim.AdamW(trainable(model)) if lr is None else torch.optim.AdamW(trainable(model), lr=lr)
        rate = "its default lr" if lr is None else "lr"
        return optimizer, Assumption("optimizer", f"no optimizer given: AdamW with {rate} {rate_of(optimizer):g}")

    return make


def given_optimizer(value: Any, where: str, lr: float | None, built: bool) -> Maker:
    """A maker from what the user's file, or a flag, has under `where`.

    `value` is an optimizer, a class, a function of the model or of its parameters. `built`: gradcheck built the model, so a finished
    optimizer of the file can only belong to another instance. Raises TargetError when called and it gives no single optimizer.
    """

    def make(model: nn.Module) -> tuple[Optimizer, Assumption]:
        result, remark = value, ""
        if isinstance(value, type) and issubclass(value, Optimizer):
            result = _called(value, (trainable(model),), where, {} if lr is None else {"lr": lr})
        elif not isinstance(value, Optimizer) and callable(value):
            result = _called(value, _arguments(value, model), where, {})
        optimizer = single_optimizer(result, where)
        if optimizer is value and not owns_any(optimizer, model):
            remark = ", which holds none of the model's parameters"
            if built:
                optimizer = _like(optimizer, model, where)
                remark = ", rebuilt with the same settings: it belongs to another instance of the model"
        if lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr
        text = f"optimizer: {type(optimizer).__name__} of {where}, lr {rate_of(optimizer):g}{remark}"
        return optimizer, Assumption("optimizer", text, given=not remark)

    return make


def single_optimizer(result: Any, where: str) -> Optimizer:
    """The optimizer in what a function returned: itself, in (optimizers, schedulers), or under "optimizer", as Lightning has it."""
    if isinstance(result, Mapping):
        result = result.get("optimizer")
    if isinstance(result, (tuple, list)):
        found = [single_optimizer(part, where) for part in result if _holds_optimizer(part)]
        if len(found) > 1:
            raise TargetError(
                f"{where} gives {len(found)} optimizers", hint="gradcheck trains with one: write make_optimizer(model) that returns it"
            )
        result = found[0] if found else result
    if not isinstance(result, Optimizer):
        raise TargetError(f"{where} gives {type(result).__name__}, not an optimizer", hint="return a torch.optim.Optimizer from it")
    return result


def _holds_optimizer(part: Any) -> bool:
    if isinstance(part, Mapping):
        return isinstance(part.get("optimizer"), Optimizer)
    return isinstance(part, Optimizer) or (isinstance(part, (tuple, list)) and any(map(_holds_optimizer, part)))


def _arguments(function: Callable[..., Any], model: nn.Module) -> tuple[Any, ...]:
    """A function takes the model, its parameters, or nothing (a bound method of the model)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return (trainable(model),)
    if getattr(function, "__self__", None) is model or not parameters:
        return ()
    return (trainable(model),) if parameters[0].name.startswith("param") else (model,)


def _called(function: Callable[..., Any], arguments: tuple[Any, ...], where: str, settings: dict[str, Any]) -> Any:
    try:
        return function(*arguments, **settings)
    except (TargetError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise failure(f"{where} cannot be called", error, hint="it is called with the model and returns the optimizer") from error


def _like(optimizer: Optimizer, model: nn.Module, where: str) -> Optimizer:
    if len(optimizer.param_groups) > 1:
        raise TargetError(
            f"{where} belongs to another instance of the model and has several parameter groups",
            hint="name that instance as the target (FILE.py:model), or write make_optimizer(model)",
        )
    accepted = inspect.signature(type(optimizer)).parameters
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k in accepted and k != "params"}
    return _called(type(optimizer), (trainable(model),), where, settings)


def owns_any(optimizer: Optimizer, model: nn.Module) -> bool:
    own = {id(p) for p in model.parameters()}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def rate_of(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0].get("lr", 0.0))


BY_NORM = ("clip_grad_norm", "max_grad_norm", "grad_clip", "gradient_clip_val", "clip_norm", "grad_clip_norm", "grad_norm_clip")
BY_VALUE = ("clip_grad_value", "clip_value", "grad_clip_value", "max_grad_value")
ALGORITHM = "gradient_clip_algorithm"  # Lightning's, beside its `gradient_clip_val`


def find_clipping(module: ModuleType, home: str, said: list[Assumption]) -> Clipping | None:
    """From a module-level number such as `max_grad_norm = 1.0`, in small letters or capitals; None when there is none."""
    known = {name.lower(): (name, value) for name, value in vars(module).items()}
    by_value = known.get(ALGORITHM, ("", "norm"))[1] == "value"
    for name in (*BY_NORM, *BY_VALUE):
        spelling, threshold = known.get(name, (name, None))
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or threshold <= 0:
            continue
        kind: Literal["norm", "value"] = "value" if by_value or name in BY_VALUE else "norm"
        said.append(Assumption("clipping", f"clipping: gradients by {kind} at {threshold:g}, `{spelling}` in {home}", given=True))
        return Clipping(kind, float(threshold), _assignment(module, spelling))
    return None


def _assignment(module: ModuleType, name: str) -> Location | None:
    """The last statement at the top of the module that gives the name its value."""
    try:
        file, source = inspect.getsourcefile(module), inspect.getsource(module)
        body = ast.parse(source).body
    except (TypeError, OSError, SyntaxError):
        return None
    found: Location | None = None
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if file and any(isinstance(t, ast.Name) and t.id == name for t in targets):
            end = node.end_col_offset if node.end_col_offset is not None else node.col_offset
            found = Location(display_path(file), node.lineno, node.col_offset + 1, node.end_lineno or node.lineno, end + 1, "")
    return found
