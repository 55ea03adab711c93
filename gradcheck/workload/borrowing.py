"""Training the user's own modules for a while, if no faithful copy of them can be made, and putting everything back.

A `BorrowedState` holds all that a training changes: tensors by their data, gradients, plain attributes, tables of hooks and submodules.
They are put into the modules in turn, one at a time; the tensors and modules themselves stay the same objects. The data of a state that
is not in place stay where they are, or, of a model that its device is not to hold twice, are set aside, with gradients and the
optimizer's state.
"""

from __future__ import annotations

import collections
import copy
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradcheck.errors import TargetError
from gradcheck.workload.copying import Memo, duplicate
from gradcheck.workload.dtensor import is_spread, local
from gradcheck.workload.set_aside import Pairs, dropping, empty, fill, set_aside, state_of, with_values
from gradcheck.workload.sharding import is_sharded, reset
from gradcheck.workload.tensors import is_transformed

T = TypeVar("T")

_CONTAINERS = (list, dict, set, collections.OrderedDict, collections.defaultdict, collections.deque)


@dataclass(eq=False)
class BorrowedState:
    """What the modules hold while this state is in place; taken from them when another one comes."""

    data: dict[int, torch.Tensor] = field(default_factory=dict)  # by id of the tensor
    gradients: dict[int, torch.Tensor | None] = field(default_factory=dict)
    trained: dict[int, bool] = field(default_factory=dict)  # requires_grad of leaves
    attributes: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)  # of modules and parameters
    contents: list[tuple[Any, Any]] = field(default_factory=list)  # containers in the attributes, with shallow copies
    optimizer: torch.optim.Optimizer | None = None  # that goes with it
    aside: Pairs = field(default_factory=list)  # gradients and its state, emptied, with their values

    def copy(self, *, shared: bool) -> BorrowedState:
        """Another state that starts out the same, without gradients. `shared`: with the same data, which nobody writes to."""
        data = self.data if shared else {key: value.clone() for key, value in self.data.items()}
        return BorrowedState(data, {}, dict(self.trained), self.attributes, self.contents)


class Borrowed:
    """Modules of the user's, and the state that is in place. `give_back` may be called at any time, and twice."""

    def __init__(self, roots: Iterable[nn.Module], tensors: Iterable[torch.Tensor] = (), *, why: str = "", spill: bool = False) -> None:
        """`tensors`: others that are trained beside the modules'. `why` no copy will do, in words for the user. `spill`: the device holds
        the tensors once only, and what is not in place is set aside."""
        roots = list(roots)
        self.modules = list(dict.fromkeys(m for root in roots for m in root.modules()))
        self._sharded = [root for root in roots if is_sharded(root)]
        self.why, self.spill, self._files = why, spill or bool(self._sharded), spill  # the data of a shard may not move
        self.tensors = {id(t): t for t in (*tensors, *_tensors_of(self.modules))}
        self._homes: dict[int, torch.Tensor] = {}  # the memory that each tensor had first, and has again in the end
        self._guards = ExitStack()
        self._theirs = BorrowedState()
        self._keep(self._theirs)
        self._initial = self._theirs
        self._active: weakref.ref[BorrowedState] | None = None  # None: theirs is in place. A state that nobody has any more is not kept

    def start_from(self, earlier: BorrowedState, copies: Mapping[int, nn.Module]) -> None:
        """Makes trainings start from the data of an earlier state and the plain attributes of the modules' `copies` of that time, by id."""
        now = self._theirs
        attributes = [(m, {**held, **_plain_attributes(copies.get(id(m)))}) for m, held in now.attributes]
        self._initial = BorrowedState({**now.data, **earlier.data}, {}, {**now.trained, **earlier.trained}, attributes, now.contents)

    def freeze(self, key: int) -> None:
        """Excludes a tensor, by id, from training."""
        initial = self._initial
        self._initial = BorrowedState(initial.data, {}, {**initial.trained, key: False}, initial.attributes, initial.contents)

    def lend(self, theirs: torch.optim.Optimizer | None = None) -> BorrowedState:
        """Puts a fresh copy of the initial state in place. `theirs`: the optimizer of the user's own state."""
        self._theirs.optimizer = theirs or self._theirs.optimizer
        state = self._initial.copy(shared=self.spill)
        self.use(state)
        return state

    def fill(self, copies: Mapping[int, Any]) -> None:
        """Gives the copies of what is set aside of the user's optimizer its values; `copies` by the id of each tensor."""
        fill((copies[id(t)], values) for t, values in self._theirs.aside if id(t) in copies)

    def use(self, state: BorrowedState) -> None:
        """Puts a state in place, and keeps the one that was."""
        active = self._active() if self._active is not None else None
        if state is active:
            return
        self._reset()
        if active is not None:
            self._keep(active)
        elif self._active is None:
            self._guard_versions()
            self._theirs.aside = self._values(self._theirs)
        self._active = weakref.ref(state)  # from here on there is something to be given back
        if active is None:
            empty(self._theirs.aside)
        self._put(state)

    def give_back(self) -> None:
        """Gives the modules back to the user, bit for bit as they were. What was trained meanwhile is over."""
        if self._active is not None:
            self._reset()
            if self._files and (ended := self._active()) is not None and ended.optimizer is not None:
                ended.optimizer.state.clear()
            self._put(self._theirs)
            self._active = None
        self._guards.close()

    # ---------------------------------------------------------------------------------------------- moving

    def _reset(self) -> None:
        for root in self._sharded:
            reset(root)

    def _guard_versions(self) -> None:
        for tensor in self.tensors.values():
            if not tensor.is_inference():
                self._guards.enter_context(torch.autograd._unsafe_preserve_version_counter(tensor))  # type: ignore[attr-defined]

    def _keep(self, state: BorrowedState) -> None:
        """Notes in `state` what the modules hold now."""
        self.tensors |= {id(t): t for t in _tensors_of(self.modules)}  # a forward pass may have made new buffers
        held = {key: _held(t) if self.spill else t.data for key, t in self.tensors.items()}
        self._homes = held | self._homes
        state.data = dict(zip(held, set_aside(list(held.values()), files=self._files), strict=True)) if self.spill else held
        state.gradients = {key: t.grad for key, t in self.tensors.items() if t.is_leaf}
        state.trained = {key: t.requires_grad for key, t in self.tensors.items() if t.is_leaf}
        parameters = [t for t in self.tensors.values() if type(t) is nn.Parameter]
        state.attributes = [(x, dict(vars(x))) for x in (*self.modules, *parameters)]
        found = {id(v): v for m in self.modules for v in vars(m).values() if type(v) in _CONTAINERS}
        state.contents = [(container, copy.copy(container) if container else ()) for container in found.values()]
        if state is not self._theirs:
            state.aside = self._values(state)
            empty(state.aside)

    def _values(self, state: BorrowedState) -> Pairs:
        """Gradients and the optimizer's state, with what they hold now."""
        return with_values([*(g for g in state.gradients.values() if g is not None), *state_of(state.optimizer)]) if self._files else []

    def _put(self, state: BorrowedState) -> None:
        for module, attributes in state.attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for container, content in state.contents:
            if container or content:  # each module has ten tables that stay empty
                _fill(container, content)
        for tensor in self.tensors.values() if self._files else ():
            if tensor.is_leaf:
                tensor.grad = None  # before others take their memory
        fill(state.aside)
        state.aside = []
        for tensor, data in dropping((self.tensors[key], data) for key, data in state.data.items()):
            key = id(tensor)
            if not self.spill:
                tensor.data = data
            elif (home := self._homes[key]).shape == data.shape and home.dtype == data.dtype:
                home.copy_(data)
                if not is_spread(tensor):
                    tensor.data = home
            else:
                tensor.data = data.to(tensor.device, copy=True)
            if tensor.is_leaf:
                tensor.grad = None
                tensor.requires_grad_(state.trained.get(key, tensor.requires_grad))
                tensor.grad = state.gradients.get(key)


def _held(tensor: torch.Tensor) -> torch.Tensor:
    """The part of it in this process."""
    return local(tensor) if is_spread(tensor) else tensor.data


def ran_out_of_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__ or error, (torch.OutOfMemoryError, MemoryError))


def _fill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)


def _plain_attributes(module: nn.Module | None) -> dict[str, Any]:
    """Numbers and words; anything that refers to other objects then refers to copies of them."""
    plain = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
    return {name: value for name, value in vars(module).items() if isinstance(value, plain)} if module is not None else {}


def _tensors_of(modules: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and tensors in plain attributes."""
    for module in modules:
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value):
                yield value


@contextmanager
def shielded(own: Collection[int]) -> Iterator[list[nn.Module]]:
    """While active, modules that are called and are not `own` (by id) are noted; they are put back as they were when they were called."""
    found: list[nn.Module] = []
    known: set[int] = set()

    def note(module: nn.Module, _: object) -> None:
        if is_transformed():  # with tensors in place of its weights; what it uses of its own is found in the graph
            return
        if id(module) in own or id(module) in known or not (module._parameters or module._buffers or module._modules):
            return
        shields.append(Borrowed([module]))
        shields[-1].lend()
        known.update(map(id, module.modules()))
        found.append(module)

    shields: list[Borrowed] = []
    try:
        with register_module_forward_pre_hook(note):
            yield found
    finally:
        for shield in reversed(shields):
            shield.give_back()


@contextmanager
def stand_in(value: T, model: nn.Module, *, unused: Collection[nn.Module] = ()) -> Iterator[T]:
    """A copy of `value`, a structure that holds `model`, to try something on; `value` itself if it cannot be copied, put back afterwards.
    `unused`: modules that the caller keeps from running.
    """
    memo: Memo = {}
    try:
        twin = duplicate(value, model, memo)
    except TargetError as error:
        with lent(model, spill=ran_out_of_memory(error)):
            yield value
        return
    with shielded({id(x) for x in (*memo.values(), *unused)}):
        yield twin


@contextmanager
def lent(model: nn.Module, *, spill: bool = False) -> Iterator[None]:
    """While active, the model may be changed."""
    borrowed = Borrowed([model], spill=spill)
    borrowed.lend()
    try:
        yield
    finally:
        borrowed.give_back()
