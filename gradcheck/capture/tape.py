"""A tape of what happens outside the model's modules: their calls, and what becomes of their outputs up to the loss.

Values are live when they come out of a recorded call or are a trained parameter; everything else is a constant, and kept as it was.
From a loss, the calls that it depends on can be put together to a `Program` that computes it again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.capture.births import Births
from gradcheck.capture.lineage import Lineage
from gradcheck.capture.nodes import CHANGED, Constant, Loose, Node, Owner, Ref, Weight, is_in_place, nodes_behind, replaced, written
from gradcheck.capture.rows import Rows
from gradcheck.capture.silent import Silent
from gradcheck.capture.structures import pack, tensors_in
from gradcheck.instrument.running_code import here
from gradcheck.types.location import Location
from gradcheck.workload.device import autocast_kinds
from gradcheck.workload.rng import host_states, same_states, torch_states
from gradcheck.workload.tensors import IdentityTable, with_items

_VIEWS_OF_VALUES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))  # properties whose values are the tensor's own
# They give no new values, or values that stand for themselves.
_SILENT = frozenset("backward register_hook retain_grad register_post_accumulate_grad_hook __deepcopy__ __reduce_ex__".split())
CUTS = {"item": "item", "tolist": "item", "__float__": "item", "__int__": "item", "numpy": "numpy", "detach": "detach", "detach_": "detach"}
_READ = frozenset("item tolist numpy __array__ __float__ __int__ __index__ __bool__".split())  # they hand values to Python
_MOVES = "detach cpu to long int float double bool clone contiguous squeeze unsqueeze view reshape flatten data __getitem__".split()
_COMPARES = "eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__".split()
_SAME_VALUES = frozenset((*_MOVES, *_COMPARES))


@dataclass
class TapedCut:
    """A call whose arguments carry gradient and whose result does not."""

    operation: str
    site: Location | None
    owners: frozenset[int]  # ids of the roots that its arguments come from
    serial: int  # of the call


@dataclass
class Tape:
    """Recording in progress. `weights` maps id(parameter) to what it is called; the owner of the tape fills it."""

    recording: bool = True
    weights: dict[int, Weight] = field(default_factory=dict)
    cuts: list[TapedCut] = field(default_factory=list)
    births: Births = field(default_factory=Births)
    rows: Rows = field(default_factory=Rows)
    silent: Silent = field(default_factory=Silent)
    lineage: Lineage = field(default_factory=Lineage)
    unowned: Callable[[torch.Tensor], None] = lambda tensor: None  # told of parameters that are used before anything owns them as they are
    failed: tuple[Node, BaseException] | None = None  # the last recorded call that raised
    failure: str = ""  # why the recording ended early
    unknown: bool = False  # a tensor with gradient whose origin was not seen went into a recorded call
    _values: IdentityTable[torch.Tensor, Ref] = field(default_factory=IdentityTable)
    _constants: IdentityTable[torch.Tensor, tuple[int, Constant]] = field(default_factory=IdentityTable)  # with versions
    _count: int = 0

    # ------------------------------------------------------------------ values

    def ref(self, tensor: torch.Tensor) -> Ref | None:
        return self._values.get(tensor)

    def alias(self, tensor: torch.Tensor, ref: Ref | None) -> None:
        """`tensor` stands for the value of `ref`."""
        if ref is not None:
            self._values[tensor] = ref

    def is_live(self, value: Any) -> bool:
        return any(self.ref(t) is not None or id(t) in self.weights for t in tensors_in(value))

    def encode(self, value: Any, depth: int = 4) -> Any:
        """The value with its tensors replaced by what they are."""
        if isinstance(value, torch.Tensor):
            return self._encoded(value)
        if depth > 0 and (type(value) in (tuple, list, dict) or hasattr(value, "_fields")):
            items = with_items(lambda v: self.encode(v, depth - 1), value)
            if items is not None:
                return items
        return pack(value, self._encoded)

    def _encoded(self, tensor: torch.Tensor) -> Any:
        known = self.ref(tensor) or self._weight(tensor)
        if known is not None:
            if isinstance(known, Ref) and not known.node.grad and tensor.grad_fn is not None:
                self.unknown = True  # it was given a gradient behind torch's functions
            return known
        entry = self._constants.get(tensor)
        if entry is not None and entry[0] == tensor._version:
            return entry[1]
        if tensor.grad_fn is not None:
            self.unknown = True
        rows, chosen = self.rows.of(tensor)
        origin = self._origin(tensor)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            constant = Constant(tensor.detach().clone(), tensor.requires_grad, rows, chosen, origin)
        self.births.note(constant, tensor)
        self.silent.note(constant, tensor)
        self.lineage.note(constant, tensor)
        self._constants[tensor] = tensor._version, constant
        return constant

    def _weight(self, tensor: torch.Tensor) -> Weight | None:
        weight = self.weights.get(id(tensor))
        if weight is not None and isinstance(root := weight.owner.original, Loose) and root.versions.get(weight.key) != tensor._version:
            self.unowned(tensor)
            weight = self.weights.get(id(tensor))
        return weight

    def _origin(self, tensor: torch.Tensor) -> Node | None:
        """The call that made the first axis of a constant out of another constant's axes."""
        moved = self.rows.way(tensor)
        if moved is None or not moved.rows or moved.args[0]._version != moved.version:
            return None
        return self._node(moved.function, self.encode(moved.args), self.encode(moved.kwargs), False)

    # ------------------------------------------------------------------- calls

    def _serial(self) -> int:
        self._count += 1
        return self._count - 1

    def module(self, owner: Owner, path: str, args: Any, place: Location | None, *, initial: bool) -> Node:
        """`initial`: the call is computed again with its random numbers. Its keyword arguments are known when it is over."""
        node = Node(self._serial(), None, owner, path, args, {}, place, torch.is_grad_enabled(), autocast_state())
        if initial:
            node.random, node.host = torch_states(), host_states()
        return node

    def put_out(self, node: Node, output: Any) -> None:
        """Notes the tensors of an output as values of the call."""
        for index, tensor in enumerate(tensors_in(output)):
            if not node.grad and not node.in_place and tensor.grad_fn is not None and self.ref(tensor) is not None:
                continue  # handed on as it is: `loss.float()` without gradient
            self.alias(tensor, Ref(node, index))
            node.counts[index] = tensor.numel()
            if not tensor.requires_grad:
                with torch._C.DisableTorchFunction():
                    node.values[index] = tensor.detach().clone()
                self.births.note(node, tensor)
                self.silent.note(node, tensor)

    def function(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Calls a torch function, and records the call when it takes something live."""
        name = _name(function)
        if name is None:
            return function(*args, **kwargs)
        node = self._safely(self._begun, name, function, args, kwargs)
        random = torch_states() if node is not None else None
        try:
            output = function(*args, **kwargs)
        except Exception as error:
            if node is not None:
                node.place = here()
                self.failed = node, error
            raise
        if node is not None and random is not None and not same_states(random, torch_states()):
            node.random = random
        self._safely(self._ended, name, node, function, args, kwargs, output)
        return output

    def _safely(self, work: Callable[..., Any], *args: Any) -> Any:
        """The user's call is not to fail for being recorded: whatever goes wrong ends the recording."""
        try:
            return work(*args)
        except Exception as error:
            self.failure = self.failure or f"{type(error).__name__}: {error}"
            self.recording = False
            return None

    def _begun(self, name: str, function: Any, args: Any, kwargs: Any) -> Node | None:
        if not self.is_live((args, kwargs)):
            return None
        changes = is_in_place(name)
        if changes and args and isinstance(args[0], torch.Tensor) and id(args[0]) in self.weights:
            return None  # an update of the weights by hand
        return self._node(function, self.encode(args), self.encode(kwargs), changes)

    def _ended(self, name: str, node: Node | None, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.births.look(name, args, kwargs, output, here)
        self.silent.look(name, function, args, output, here)
        if node is None:
            starts = torch.is_grad_enabled() and isinstance(output, torch.Tensor) and output.requires_grad
            if starts and name != "requires_grad_" and self._takes_leaf(args, kwargs):
                node = self._node(function, self.encode(args), self.encode(kwargs), False)
            elif args and isinstance(args[0], torch.Tensor) and args[0].dim():
                if isinstance(output, torch.Tensor):
                    self.rows.follow(name, function, args, kwargs, output)
                self.lineage.follow(name, function, args, kwargs, output)
        if node is None:
            return
        if name in _READ:
            mark_read(node)
            self.silent.read(node, output, here)
        self._cut(name, any(t.requires_grad and not t.is_leaf for t in tensors_in((args, kwargs))), output, node)
        results = [args[0]] if name == "__setitem__" else list(tensors_in(output, 2))
        if results:
            node.place = here()
            self.put_out(node, results)
        if node.in_place and results:
            self._write_through(results[0])

    def _write_through(self, part: torch.Tensor) -> None:
        """Lets the whole tensor stand for what was written to a part of it."""
        base = part._base
        if base is None or id(base) in self.weights or (base.is_leaf and base.requires_grad):
            return
        with torch._C.DisableTorchFunction():
            place = tuple(part.size()), part.stride(), part.storage_offset() - base.storage_offset()
            before = base if self.ref(base) is not None else base.detach()
        node = self._node(written, self.encode((before, part, *place)), {}, False)
        node.place = here()
        self.put_out(node, [base])

    def _takes_leaf(self, args: Any, kwargs: Any) -> bool:
        """Whether a gradient starts here. An owner is found for parameters that are used before the module that holds them has run."""
        leaves = [t for t in tensors_in((args, kwargs)) if t.requires_grad and t.is_leaf]
        for leaf in leaves:
            self.unowned(leaf)
        return bool(leaves)

    def succeed(self, old: int, leaf: torch.Tensor, ends: Iterable[Node]) -> None:
        """A leaf is from now on the weight that the one with id `old` was; the calls that `ends` depend on took it as a constant."""
        weight = self.weights.pop(old)
        self.weights[id(leaf)] = weight
        if isinstance(weight.owner.original, Loose):
            weight.owner.original.tensors[weight.key] = leaf
        self.promote(leaf, ends)

    def changed(self, tensor: torch.Tensor) -> None:
        """Notes on its owner that a weight is written to by way of `.data` or `detach()`, which count no versions."""
        ref = self.ref(tensor)
        for value in (self.weights.get(id(tensor)), *(ref.node.args if ref is not None and _shares_memory(ref.node) else ())):
            if isinstance(value, Weight):
                value.owner.versions = CHANGED

    def constant(self, tensor: torch.Tensor) -> Constant | None:
        """What stands for a tensor that calls took as it is."""
        entry = self._constants.get(tensor)
        return entry[1] if entry is not None else None

    def promote(self, leaf: torch.Tensor, ends: Iterable[Node]) -> None:
        """A leaf turns out to be a weight. The calls that `ends` depend on took it as a constant, or as what it was computed from."""
        ref = self.ref(leaf)
        known = ref if ref is not None else self.constant(leaf)
        if known is not None:
            for node in nodes_behind(ends):
                node.args, node.kwargs = (replaced(x, known, self.weights[id(leaf)]) for x in (node.args, node.kwargs))
        self._values.pop(leaf)

    def _node(self, function: Any, args: Any, kwargs: Any, in_place: bool) -> Node:
        return Node(self._serial(), function, None, "", args, kwargs, None, torch.is_grad_enabled(), autocast_state(), in_place=in_place)

    def _cut(self, name: str, carries: bool, output: Any, node: Node) -> None:
        if not carries or any(t.requires_grad for t in tensors_in(output, 2)):
            return
        operation = CUTS.get(name) or ("data" if name == "data" else None)
        if not torch.is_grad_enabled():
            operation = "no_grad" if isinstance(output, torch.Tensor) else None
        if operation is not None and len(self.cuts) < 1000:
            owners = frozenset(id(n.owner.original) for n in nodes_behind([node]) if n.owner is not None)
            self.cuts.append(TapedCut(operation, here(), owners, node.serial))


def mark_read(reader: Node) -> None:
    """Marks the calls whose values a reading call hands to Python, behind others that move, cut or compare them at most."""
    node = reader
    while (source := next((x.node for x in node.inputs() if isinstance(x, Ref)), None)) is not None:
        if source.read or not source.values:
            return
        source.read, node = True, source
        if getattr(source.call, "__name__", "") not in _SAME_VALUES:
            return


def _shares_memory(node: Node) -> bool:
    function = node.call
    name = getattr(function, "__name__", "")
    return name in ("detach", "view", "reshape") or (name == "__get__" and _name(function) == "data")


def _name(function: Any) -> str | None:
    """What a torch function is called; None for those that give no new values."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", "")
        return name if name in _VIEWS_OF_VALUES else None
    if getattr(function, "__module__", None) == "torch.nn.init":
        return None
    return None if name in _SILENT or name in ("__set__", "__len__", "size", "dim", "numel") else name


def autocast_state() -> tuple[tuple[str, torch.dtype], ...]:
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in autocast_kinds() if torch.is_autocast_enabled(kind))
