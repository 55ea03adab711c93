"""Which root model each module belongs to, and copies of the root models as they were before training."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradcheck.capture.nodes import CHANGED, Loose, Owner, Weight
from gradcheck.capture.tape import Tape
from gradcheck.errors import TargetError
from gradcheck.instrument.running_code import is_program, variable_of
from gradcheck.workload.borrowing import ran_out_of_memory
from gradcheck.workload.copying import duplicate
from gradcheck.workload.set_aside import set_aside
from gradcheck.workload.source_sites import Sites

MOST_COPIES = 20  # of one root, before buffers and plain attributes no longer count as a change of it
MOST_SECONDS = 2.0  # for them, likewise
OFFLOADED = "--offload keeps no copy of them in memory"
_COMPARED = 200  # items of a container, or attributes of an object, that are compared
_TABLES = frozenset(vars(nn.Module())) - {"training"}  # of a module: parameters, submodules, hooks


class RootModules:
    """The roots that ran so far. While `initial`, a root whose weights were changed since it was copied is copied again."""

    def __init__(self, sites: Sites, tape: Tape) -> None:
        self.sites, self.tape = sites, tape
        self.offload = False  # no root is copied: what it holds is set aside
        self.initial = True
        self.current: dict[int, Owner] = {}  # by id of the root
        self._roots: dict[int, tuple[nn.Module, nn.Module]] = {}  # id(module) -> module, its root
        self._paths: dict[int, dict[int, str]] = {}  # id(root) -> id(module) -> path
        self._made: dict[int, int] = {}  # id(root) -> how often it was copied
        self._spent: dict[int, float] = {}  # id(root) -> seconds that its copies took

    def of(self, module: nn.Module) -> tuple[Owner, str]:
        """The owner of a module, and the module's path in it."""
        root = self._root(module)
        owner = self.current.get(id(root))
        if owner is None or (self.initial and self._changed(owner)):
            owner = self._renewed(root, owner)
        paths = self._paths.get(id(root), {})
        if id(module) not in paths:
            paths = self._paths[id(root)] = {id(m): name for name, m in root.named_modules(remove_duplicate=False)}
        return owner, paths[id(module)]

    def _root(self, module: nn.Module) -> nn.Module:
        """The outermost living module that holds this one, compiled and parallel wrappers left out."""
        known = self._roots.get(id(module))
        if known is not None and known[0] is module and not self.initial:
            return known[1]
        parents: dict[int, list[nn.Module]] = {}
        for other in self.sites.modules():
            for child in other._modules.values() if not is_program(other) else ():
                if child is not None:
                    parents.setdefault(id(child), []).append(other)
        root, seen = module, {id(module)}
        while above := [m for m in parents.get(id(root), ()) if id(m) not in seen]:
            root = max(above, key=lambda m: sum(1 for _ in m.parameters()))
            seen.add(id(root))
        self._roots[id(module)] = module, root
        return root

    def _changed(self, owner: Owner) -> bool:
        root = id(owner.original)
        if self._made.get(root, 0) < MOST_COPIES and self._spent.get(root, 0.0) < MOST_SECONDS:
            return owner.versions != versions(owner.original)
        return bool(owner.versions[0] != _tensor_versions(owner.original.parameters()))

    def _renewed(self, root: nn.Module, old: Owner | None) -> Owner:
        """A copy of what the root is now. Roots that share parameters with it share their copies, unless those have changed since."""
        self._made[id(root)] = self._made.get(id(root), 0) + 1
        mine = {id(t) for t in (*root.parameters(), *root.buffers())}
        memo: dict[int, Any] = {}
        for other in [o for o in self.current.values() if o.original is not root and mine & o.memo.keys()]:
            inside = other.memo.keys() & set(map(id, root.modules()))
            if other.copy is None or id(other.original) in inside or other.versions[0] != _tensor_versions(other.original.parameters()):
                del self.current[id(other.original)]
            else:
                memo |= other.memo
        started = time.perf_counter()
        owner = self._owner(root, memo, old.label if old is not None else "")
        self._spent[id(root)] = self._spent.get(id(root), 0.0) + time.perf_counter() - started
        self.current[id(root)] = owner
        for name, parameter in root.named_parameters():
            self.tape.weights[id(parameter)] = Weight(owner, name, id(parameter))
        return owner

    def settle(self, owner: Owner) -> None:
        """After a root's first call: parameters that this call has made are copied as they are now."""
        if any(is_lazy(t) for t in owner.memo.values() if isinstance(t, torch.Tensor)):
            made, owner.unmade = self._owner(owner.original, {}, owner.label), owner.copy
            owner.copy, owner.memo, owner.versions, owner.why = made.copy, made.memo, made.versions, made.why

    def _owner(self, root: nn.Module, memo: dict[int, Any], label: str) -> Owner:
        label = self._free_label(label or variable_of(root) or type(root).__name__.lower(), root)
        now = versions(root)
        with torch._C.DisableTorchFunction():
            try:
                if self.offload:
                    raise TargetError(OFFLOADED) from MemoryError()
                twin = duplicate(root, root, memo)
                _make_parameters(root, twin, memo)
                return Owner(root, twin, memo, now, label)
            except TargetError as error:
                short = ran_out_of_memory(error)
                every = [*root.parameters(), *root.buffers()]
                values = set_aside(every, files=self.offload) if short else [t.detach().clone() for t in every]
                kept = {id(t): v.requires_grad_(t.requires_grad) for t, v in zip(every, values, strict=True)}
                return Owner(root, None, kept, now, label, error.message, short=short)

    def _free_label(self, label: str, root: nn.Module) -> str:
        taken = {o.label for o in self.current.values() if o.original is not root}
        numbers = (f"{label}{n}" if n else label for n in range(1000))
        return next(name for name in numbers if name not in taken)

    def own(self, parameters: Iterable[torch.Tensor]) -> None:
        """Makes the roots known that hold these parameters, and have not run yet."""
        missing = {id(p) for p in parameters} - self.tape.weights.keys()
        for module in self.sites.modules() if missing else ():
            if any(id(p) in missing for p in module._parameters.values() if p is not None):
                missing -= {id(p) for p in self.of(module)[0].original.parameters()}

    def adopt(self, tensors: Iterable[torch.Tensor], owner: Owner | None = None) -> Owner | None:
        """Gives parameters that no module holds to an owner: a new one, or one that this method has made."""
        free = list(tensors)
        if not free:
            return owner
        if owner is None:
            holder = Loose()
            owner = Owner(holder, nn.Module(), {}, CHANGED, self._free_label("parameters", holder))
            self.current[id(holder)] = owner
        owner = self.current.get(id(owner.original), owner)
        assert isinstance(owner.original, Loose)
        for tensor in free:
            number = len(owner.original.tensors)
            name = variable_of(tensor, outermost=True) or f"p{number}"
            name = name if not hasattr(owner.copy, name) else f"{name}_{number}"
            if isinstance(tensor, nn.Parameter):
                owner.original.register_parameter(name, tensor)
            self._hold(tensor, Weight(owner, name, id(tensor)))
        return owner

    def refresh(self, tensor: torch.Tensor) -> None:
        """While trainings begin: a new owner for weights that no module holds, where another training has changed them by now."""
        weight = self.tape.weights.get(id(tensor)) if self.initial else None
        if weight is None or not isinstance(root := weight.owner.original, Loose):
            return
        if all(t._version == root.versions[key] for key, t in root.tensors.items()):
            return
        owner = self.current[id(root)] = Owner(root, nn.Module(), {}, CHANGED, weight.owner.label)
        for key, held in list(root.tensors.items()):
            self._hold(held, Weight(owner, self.tape.weights[id(held)].name, key))

    def _hold(self, tensor: torch.Tensor, weight: Weight) -> None:
        root, copied = weight.owner.original, weight.owner.copy
        assert isinstance(root, Loose) and copied is not None
        with torch._C.DisableTorchFunction():
            value = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        copied.register_parameter(weight.name, value)
        weight.owner.memo[weight.key] = value
        root.tensors[weight.key], root.versions[weight.key] = tensor, tensor._version
        self.tape.weights[id(tensor)] = weight
        self.tape.promote(tensor, ())  # whatever it was computed from, as stacked weights are


def _make_parameters(root: nn.Module, twin: nn.Module, memo: dict[int, Any]) -> None:
    """While `torch.func.functional_call` runs a module, plain tensors are in place of its parameters: in the copy, parameters are."""
    for original, module in zip(root.modules(), twin.modules(), strict=True):
        for name, value in module._parameters.items():
            if value is not None and not isinstance(value, nn.Parameter):
                parameter = nn.Parameter(value.detach(), value.requires_grad)
                module._parameters[name] = memo[id(original._parameters[name])] = parameter


def versions(root: nn.Module) -> tuple[Any, ...]:
    """What shows whether a model is still what it was: its parameters, buffers, and the plain attributes of its modules."""
    return _tensor_versions(root.parameters()), _tensor_versions(root.buffers()), tuple(_attributes(m) for m in root.modules())


def _tensor_versions(tensors: Iterable[torch.Tensor]) -> tuple[Any, ...]:
    return tuple((id(t), -1 if is_lazy(t) or t.is_inference() else t._version, t.requires_grad) for t in tensors)


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    return tuple((name, _plain(value, 2)) for name, value in vars(module).items() if name not in _TABLES)


def _plain(value: Any, depth: int) -> Any:
    """A value that can be compared later: numbers and words, in containers and in the attributes of an object (a configuration), too."""
    if isinstance(value, (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)):
        return value
    if isinstance(value, (nn.Module, torch.Tensor)) or not depth:
        return id(value)
    if isinstance(value, (list, tuple)):
        return id(value), len(value), tuple(_plain(v, depth - 1) for v in value[:_COMPARED])
    if isinstance(value, dict):
        return id(value), len(value), tuple((id(k), _plain(v, depth - 1)) for k, v in list(value.items())[:_COMPARED])
    held = getattr(value, "__dict__", None)
    if type(held) is dict and not isinstance(value, type) and not callable(value):
        return id(value), tuple((k, _plain(v, depth - 1)) for k, v in list(held.items())[:_COMPARED])
    return id(value)
