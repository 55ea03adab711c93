"""Finding and building the model that a file defines."""

import ast
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading.importing import get_attribute, required_arguments
from gradcheck.types.measurement import Assumption
from gradcheck.workload.rng import seed_all
from gradcheck.workload.source_sites import failure

FACTORIES = ("build_model", "make_model", "get_model", "create_model")
_CONVENTIONS = f"call it `model`, write {FACTORIES[0]}(), or name it"


@dataclass(frozen=True)
class FoundModel:
    model: nn.Module
    name: str  # of the object in the file
    built: bool  # gradcheck built it from a class or factory: other objects of the file belong to other instances
    said: Assumption
    optimizer: torch.optim.Optimizer | None = None  # when a factory returned one, too


def find_model(module: types.ModuleType, home: str, name: str, arguments: Mapping[str, str], seed: int) -> FoundModel:
    """The model that `name` refers to, or the one that the conventions find. Raises TargetError with the candidates."""
    guessed = ""
    if name:
        value = get_attribute(module, name, home)
    else:
        name, value, guessed = _by_convention(module, home)
    if isinstance(value, nn.Module):
        if arguments:
            raise TargetError(f"{home}:{name} is a finished model, it takes no --arg", hint="name its class or a factory function instead")
        return FoundModel(value, name, False, Assumption("model", f"model: `{name}` in {home}{guessed}", given=not guessed))
    if not callable(value) or isinstance(value, types.ModuleType):
        raise TargetError(f"{home}:{name} is a {type(value).__name__}, not a model", hint=_listing(module, home))
    result = _build(value, f"{home}:{name}", arguments, seed)
    parts = result if isinstance(result, (tuple, list)) else (result,)
    model = next((part for part in parts if isinstance(part, nn.Module)), None)
    if model is None:
        kind = f"the class {result.__name__}" if isinstance(result, type) else type(result).__name__
        hint = "return the model from it" + (f"; if it trains: gradcheck scan {home}" if result is None else "")
        raise TargetError(f"{home}:{name}() returns {kind}, not a torch.nn.Module", hint=hint)
    optimizer = next((part for part in parts if isinstance(part, torch.optim.Optimizer)), None)
    with_arguments = ", ".join(f"{key}={text}" for key, text in arguments.items())
    said = Assumption("model", f"model: {name}({with_arguments}) of {home}{guessed}", given=not guessed)
    return FoundModel(model, name, True, said, optimizer)


def _by_convention(module: types.ModuleType, home: str) -> tuple[str, Any, str]:
    space = vars(module)
    given = space.get("model")
    if isinstance(given, nn.Module) or (callable(given) and not isinstance(given, types.ModuleType)):
        return "model", given, ""
    for name in FACTORIES:
        if callable(space.get(name)):
            return name, space[name], ""
    instances = _instances(space)
    if len(instances) == 1:
        return instances[0], space[instances[0]], ", the only model object of the file"
    if len(instances) > 1:
        raise _several(home, instances)
    classes = _classes(module)
    if not classes:
        raise TargetError(
            f"{home} has no model",
            hint=f"gradcheck looks for `model`, {', '.join(f + '()' for f in FACTORIES)} or a Module class; {_CONVENTIONS}: {home}:name",
        )
    name = _main_class(classes, _used_by_classes(module, set(classes)), home)
    return name, classes[name], ", the only class of the file that no other one uses" if len(classes) > 1 else ""


def _main_class(classes: dict[str, type[nn.Module]], used: set[str], home: str) -> str:
    unused = [name for name in classes if name not in used] or list(classes)
    unused = [name for name in unused if not name.lower().endswith(("loss", "criterion"))] or unused
    free = [name for name in unused if not required_arguments(classes[name])]
    if len(free) == 1:
        return free[0]
    if len(free) > 1 or len(unused) > 1:
        raise _several(home, free or unused)
    return unused[0]  # building it says which arguments are missing


def _instances(space: Mapping[str, Any]) -> list[str]:
    """Names of module-level models with parameters that are not part of another one."""
    named = {
        name: x
        for name, x in space.items()
        if isinstance(x, nn.Module) and not name.startswith("_") and next(x.parameters(), None) is not None
    }
    models = {name: x for name, x in named.items() if name not in ("criterion", "loss_fn") and not name.lower().endswith("loss")}
    parts = {id(part) for model in models.values() for part in model.modules() if part is not model}
    names: dict[int, str] = {}
    for name, model in models.items():
        if id(model) not in parts:
            names.setdefault(id(model), name)
    return list(names.values())


def _classes(module: types.ModuleType) -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__ and value.__name__ == name
    }


def _used_by_classes(module: types.ModuleType, classes: set[str]) -> set[str]:
    """Classes that another class of the file names, as a base, in its body, or in a helper function that it calls."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, SyntaxError, TypeError):
        return set()
    bodies = {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    mentions = {name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} for name, node in bodies.items()}
    used: set[str] = set()
    for name in classes & bodies.keys():
        reached, pending = {name}, [name]
        while pending:
            for mentioned in mentions.get(pending.pop(), set()) - reached:
                reached.add(mentioned)
                if mentioned in bodies and mentioned not in classes:
                    pending.append(mentioned)
        used |= (reached & classes) - {name}
    return used


def _build(factory: Callable[..., Any], what: str, arguments: Mapping[str, str], seed: int) -> Any:
    chosen = _converted(factory, what, arguments)
    missing = [name for name in required_arguments(factory) if name not in chosen]
    if missing:
        flags = " ".join(f"--arg {name}=VALUE" for name in missing)
        raise TargetError(f"{what} needs {', '.join(missing)}", hint=f"give {flags}, or defaults in the file, or build it there as `model`")
    seed_all(seed)
    try:
        return factory(**chosen)
    except (TargetError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise failure(f"{what} cannot be built", error, hint="correct it, or give other arguments with --arg key=value") from error


def _converted(factory: Callable[..., Any], what: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    try:
        accepted = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {name: literal(text) for name, text in arguments.items()}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    unknown = [name for name in arguments if name not in accepted and not open_ended]
    if unknown:
        raise TargetError(f"{what} has no argument {unknown[0]}", hint=f"it takes {', '.join(accepted) or 'none'}")
    return {
        name: text if name in accepted and accepted[name].annotation in (str, "str") else literal(text) for name, text in arguments.items()
    }


def literal(text: str) -> Any:
    """The Python value that a command-line argument spells; the text itself when it spells none."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _listing(module: types.ModuleType, home: str) -> str:
    names = [*_instances(vars(module)), *_classes(module), *(f for f in FACTORIES if callable(vars(module).get(f)))]
    return f"the file defines {', '.join(f'{home}:{n}' for n in names)}" if names else f"{_CONVENTIONS}: {home}:name"


def _several(home: str, names: list[str]) -> TargetError:
    hint = " or ".join(f"{home}:{name}" for name in names)
    return TargetError(f"{home} has several candidates for the model: {', '.join(names)}", hint=f"name one: gradcheck scan {hint}")


def unwrapped(model: nn.Module) -> tuple[nn.Module, list[Assumption]]:
    """The module inside torch.compile and data-parallel wrappers: what they wrap is measured."""
    said: list[Assumption] = []
    while True:
        kind = type(model).__name__
        inner = getattr(model, "_orig_mod", None) if kind == "OptimizedModule" else None
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model, said
        wrapper = "torch.compile" if kind == "OptimizedModule" else kind
        said.append(Assumption("model", f"the model inside {wrapper} is measured, without {wrapper}", given=True))
        model = inner
