"""Copies of a user's model that are as good as the original: nothing in them refers to the original any more. `copy.deepcopy` takes
functions as they are, so that a lambda, a closure or a hook that refers to a module still calls the original. Here functions, too, are
bound to the copies wherever a copied object holds them.
"""

import collections
import copy
import functools
import itertools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributions.transforms import _InverseTransform
from torch.nn.parameter import UninitializedBuffer

from gradcheck.errors import TargetError
from gradcheck.workload.dtensor import is_freed

T = TypeVar("T")
Memo = dict[int, Any]  # id(original) -> its copy, as `copy.deepcopy` keeps it

_CONTAINERS = (list, dict, set, collections.OrderedDict, collections.defaultdict, collections.deque)
_TABLES = frozenset((dict, collections.OrderedDict, set))
_ATOMS = frozenset((bool, int, float, str, type(None)))
_PLAIN = _ATOMS | {torch.Tensor, nn.Parameter}  # what holds no functions
_COPIED_BY = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
_DEPTH = 3  # of containers in an attribute in which tensors are looked for
_FEW = 1000  # items: longer containers hold data, not modules


def duplicate(value: T, model: nn.Module, memo: Memo | None = None) -> T:
    """A deep copy of `value`, a structure that holds `model`. Raises TargetError when something in it cannot be copied."""
    memo = memo_for(model, memo)
    with copying():
        twin = copy.deepcopy(value, memo)
        require_parts(model, memo)
        bind_copies(memo)
    return twin


def require_parts(model: nn.Module, memo: Memo) -> None:
    """Raises TargetError if it is not known which weight of the copy is which: a model may make copies from its configuration."""
    match_parts(model, memo)
    if any(id(p) not in memo for p in model.parameters()):
        raise TargetError("it makes its copies itself, without saying which weight of a copy is which")


def match_parts(model: nn.Module, memo: Memo) -> None:
    """Adds the tensors of a model that torch.jit has compiled, whose copying notes none: those of the same name and value."""
    twin = memo.get(id(model))
    if not isinstance(model, torch.jit.ScriptModule) or not isinstance(twin, nn.Module):
        return
    copies = dict(_named_tensors(twin))
    for name, tensor in _named_tensors(model):
        if name in copies and memo.get(id(tensor)) is not copies[name] and _same(tensor, copies[name]):
            memo[id(tensor)] = copies[name].requires_grad_(tensor.requires_grad)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is not b and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def memo_for(model: nn.Module, memo: Memo | None = None) -> Memo:
    """A memo, or more for a given one, with what torch refuses to copy: tensors that are not leaves (old weight_norm keeps one, a recurrent
    net its state). And with what takes `copy.deepcopy` most of its time: empty tables, of which each module has ten, for hooks, and modules
    that hold parameters, numbers and words only. Raises TargetError.
    """
    memo, kept = {} if memo is None else memo, list[torch.Tensor]()
    memo.update({id(b): _unmade(b) for b in model.buffers() if isinstance(b, UninitializedBuffer) and id(b) not in memo})
    modules = [m for m in model.modules() if id(m) not in memo]
    usual = all(map(_is_usual, set(map(type, modules)))) and not any("__deepcopy__" in vars(m) for m in modules)
    with copying():
        for module in modules:
            state = _state(module, memo, kept)
            if usual and state is not None:
                memo[id(module)] = _reconstruct(module, state, memo)
    if any(map(is_freed, kept)):
        raise TargetError("it gives the memory of its parameters back between passes, as FullyShardedDataParallel does")
    for tensor in kept:
        memo[id(tensor)] = tensor.detach().clone()
    return memo


def _state(module: nn.Module, memo: Memo, kept: list[torch.Tensor]) -> dict[str, Any] | None:
    """That of its copy, but with the parameters themselves; None if more is in it than these, numbers and words. Files empty tables and
    tensors that are not leaves."""
    state: dict[str, Any] | None = {}
    for name, value in vars(module).items():
        if _is_empty_table(value):
            value = memo.setdefault(id(value), type(value)())
        elif type(value) not in _ATOMS and not (type(value) is tuple and _ATOMS.issuperset(map(type, value))):
            if name != "_parameters" or not all(p is None or _is_usual_parameter(p) for p in value.values()):
                state = None
            if isinstance(value, (torch.Tensor, list, tuple, dict)):
                kept += [t for t in _tensors(value, _DEPTH) if not t.is_leaf]
        if state is not None:
            state[name] = value
    return state


def _reconstruct(x: nn.Module, state: dict[str, Any], memo: Memo) -> nn.Module:
    """Named as the function that `copy.deepcopy` does it with: `source_sites` knows both."""
    twin = type(x).__new__(type(x))
    if held := x._parameters:
        state["_parameters"] = memo[id(held)] = {name: None if p is None else p.__deepcopy__(memo) for name, p in held.items()}
    twin.__setstate__(state)
    return twin


def _is_usual(kind: type[nn.Module]) -> bool:
    """Whether modules of a class are copied as torch's are."""
    same = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _COPIED_BY)
    return same and not any(vars(c).get("__slots__") for c in kind.__mro__)


def _is_usual_parameter(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and parameter.is_leaf and not vars(parameter)


def _unmade(buffer: UninitializedBuffer) -> UninitializedBuffer:
    return UninitializedBuffer(device=buffer.device, dtype=buffer.dtype)  # type: ignore[call-arg]


def _is_empty_table(value: Any) -> bool:
    """Whether it is a dictionary or set that holds nothing, attributes included."""
    return type(value) in _TABLES and not value and not getattr(value, "__dict__", None)


def _tensors(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, depth - 1)


@contextmanager
def copying() -> Iterator[None]:
    """Turns what a copy may raise into one TargetError. Without gradient: copies by torch.jit would be computed from the originals."""
    try:
        with torch.no_grad():
            yield
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(
            f"the model cannot be copied: {type(error).__name__}: {error}",
            hint="give the attribute that fails a __deepcopy__ method",
        ) from error


# ------------------------------------------------------------------------------------------------- functions


def bind_copies(memo: Memo) -> None:
    """Binds the functions that copied objects hold to the copies; what only such functions refer to is copied on the way."""
    _complete(memo)
    start = 0
    while start < len(memo):  # what is copied on the way comes at its end
        fresh, start = list(itertools.islice(memo.items(), start, None)), len(memo)
        for key, twin in fresh:
            if key in (id(twin), id(memo)) or type(twin) in _PLAIN or _is_empty_table(twin):
                continue
            if not isinstance(twin, (torch.Tensor, types.FunctionType, types.ModuleType, type)):
                memo.setdefault(id(twin), twin)  # a copy that wrapped its own methods anew refers to itself
                _bind_held(twin, memo)


def _complete(memo: Memo) -> None:
    """Puts back what torch leaves out of its copies: attributes of parameters (per-sample gradients, marks for the optimizer), and of an
    inverse transform of distributions the one that it inverts."""
    for original in list(memo.get(id(memo), ())):
        twin: Any = memo.get(id(original))
        if isinstance(original, _InverseTransform) and getattr(twin, "_inv", original) is None:
            twin._inv = copy.deepcopy(original._inv, memo)
        elif isinstance(original, nn.Parameter) and isinstance(twin, nn.Parameter):
            for name in vars(original).keys() - vars(twin).keys():
                value = vars(original)[name]
                setattr(twin, name, value.detach().clone() if isinstance(value, torch.Tensor) else _copied(value, memo))


def _bind_held(twin: Any, memo: Memo) -> None:
    """The functions among the items and attributes of one copied object."""
    if isinstance(twin, functools.partial):
        args = tuple(_bound_if_function(a, memo) for a in twin.args)
        twin.__setstate__((_bound_if_function(twin.func, memo), args, twin.keywords, vars(twin)))  # type: ignore[attr-defined]
        return
    if isinstance(twin, dict):
        _bind_items(twin, list(twin.items()), memo)
    elif isinstance(twin, list):
        _bind_items(twin, list(enumerate(twin)), memo)
    attributes = getattr(twin, "__dict__", None)
    if type(attributes) is dict:
        _bind_items(attributes, list(attributes.items()), memo)


def _bind_items(home: Any, items: list[tuple[Any, Any]], memo: Memo) -> None:
    for key, value in items:
        if isinstance(value, types.FunctionType):
            twin: Any = _bound_function(value, memo)
        elif type(value) is tuple and any(isinstance(v, types.FunctionType) for v in value):
            twin = tuple(_bound_if_function(v, memo) for v in value)
        else:
            continue
        if twin is not value:
            home[key] = twin


def _bound_if_function(value: Any, memo: Memo) -> Any:
    return _bound_function(value, memo) if isinstance(value, types.FunctionType) else value


def bound(value: Any, memo: Memo) -> Any:
    """A callable whose bound object, closure and globals refer to the copies where they referred to copied objects."""
    if isinstance(value, types.FunctionType):
        return _bound_function(value, memo)
    if isinstance(value, functools.partial):
        keywords = {k: _copied(v, memo) for k, v in value.keywords.items()}
        return functools.partial(bound(value.func, memo), *(_copied(a, memo) for a in value.args), **keywords)
    return _copied(value, memo)


def _copied(value: Any, memo: Memo) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, (types.FunctionType, functools.partial)):
        return bound(value, memo)
    if isinstance(value, nn.Module):
        memo_for(value, memo)
    holds_state = isinstance(value, (nn.Module, nn.Parameter, torch.optim.Optimizer, types.MethodType))
    if holds_state or (hasattr(value, "__dataclass_fields__") and not isinstance(value, type)):
        return copy.deepcopy(value, memo)
    if type(value) in _CONTAINERS:
        return _copied_container(value, memo)
    if isinstance(value, tuple) and any(_is_copied(v, memo) for v in value):
        return copy.deepcopy(value, memo)
    return value


def _is_copied(value: Any, memo: Memo) -> bool:
    return isinstance(value, (nn.Module, nn.Parameter)) or id(value) in memo


def _copied_container(value: Any, memo: Memo) -> Any:
    """A copy, to be used in its place, of a container that a function fills or reads. Its items stay, unless they are copied, too."""
    twin = memo[id(value)] = copy.copy(value)
    memo.setdefault(id(memo), []).append(value)  # as `copy.deepcopy` does: an id in the memo is that of a living object
    if len(value) > _FEW:
        return twin
    if isinstance(twin, dict):
        twin.update({k: _copied(v, memo) for k, v in value.items()})
    elif isinstance(twin, (list, collections.deque)):
        for index, item in enumerate(value):
            twin[index] = _copied(item, memo)
    return twin


def _bound_function(function: types.FunctionType, memo: Memo) -> types.FunctionType:
    """A twin of a function that refers to anything copied; else the function itself."""
    if id(function) in memo:
        return memo[id(function)]
    memo.setdefault(id(memo), []).append(function)
    space = _Globals(function)
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    twin = types.FunctionType(function.__code__, space.own, function.__name__, None, cells or None)
    twin.__dict__.update(function.__dict__)
    memo[id(function)] = memo[id(twin)] = twin  # a recursive function refers to its own twin; a twin needs none
    changed = _filled(cells, function, twin, memo)
    for name, content in space.candidates():
        value = _copied(content, memo)
        if value is not content and value is not twin:
            space.own[name] = value
            changed = True
        elif value is twin:
            space.own[name] = twin
    twin.__defaults__ = tuple(_copied(v, memo) for v in function.__defaults__) if function.__defaults__ else None
    twin.__kwdefaults__ = {k: _copied(v, memo) for k, v in function.__kwdefaults__.items()} if function.__kwdefaults__ else None
    given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    kept = [*(twin.__defaults__ or ()), *(twin.__kwdefaults__ or {}).values()]
    changed |= any(a is not b for a, b in zip(given, kept, strict=True))
    if changed:
        space.complete()
    else:
        memo[id(function)] = function
    return memo[id(function)]


def _filled(cells: tuple[types.CellType, ...], function: types.FunctionType, twin: types.FunctionType, memo: Memo) -> bool:
    """Fills the cells of a twin. Returns whether any differs from the original's."""
    changed = False
    for cell, original in zip(cells, function.__closure__ or (), strict=True):
        try:
            content = original.cell_contents
        except ValueError:  # an empty cell
            continue
        cell.cell_contents = _copied(content, memo)
        changed |= cell.cell_contents is not content and cell.cell_contents is not twin
    return changed


class _Globals:
    """The names of a module as a twin of one of its functions sees them. Copied whole only for a twin that is kept."""

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function
        self.own: dict[str, Any] = {}

    def candidates(self) -> Iterator[tuple[str, Any]]:
        """What the function refers to by name, and may have to be copied."""
        space = self._function.__globals__
        for name in sorted(_global_names(self._function.__code__)):
            content = space.get(name)
            if content is None or isinstance(content, (types.ModuleType, type)):
                continue
            if isinstance(content, types.FunctionType) and content.__globals__ is not space:
                continue
            yield name, content

    def complete(self) -> None:
        for name, content in self._function.__globals__.items():
            self.own.setdefault(name, content)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names
