"""Tensors in values of any structure: batches, arguments, outputs; and what is known of objects by identity."""

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch

_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size))  # what most arguments are
NONE: Callable[[Any], Iterator[torch.Tensor]] = lambda _: iter(())  # noqa: E731


def tensors_in(value: Any, depth: int = 3, others: Callable[[Any], Iterator[torch.Tensor]] = NONE) -> Iterator[torch.Tensor]:
    """The tensors in containers and dataclasses, in order, `depth` levels deep; in objects of other kinds as `others` finds them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth > 0 and type(value) not in _PLAIN:
        if isinstance(value, (tuple, list)):
            for item in value:
                yield from tensors_in(item, depth - 1, others)
        elif isinstance(value, Mapping):
            for item in value.values():
                yield from tensors_in(item, depth - 1, others)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for spec in dataclasses.fields(value):
                yield from tensors_in(getattr(value, spec.name, None), depth - 1, others)
        else:
            yield from others(value)


def with_items(function: Callable[[Any], Any], value: Any) -> Any:
    """A tuple, named tuple, list or mapping (as a dict) with the function's values in place of its items; None for anything else."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)._make(map(function, value))  # type: ignore[attr-defined]
    if isinstance(value, (tuple, list)):
        items = list(map(function, value))
        try:
            return type(value)(items)
        except Exception:  # one with a constructor of its own
            return items if isinstance(value, list) else tuple(items)
    return {key: function(item) for key, item in value.items()} if isinstance(value, Mapping) else None


def map_structure(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of every leaf of nested mappings, lists and tuples; the containers keep their kind."""
    items = with_items(lambda item: map_structure(function, item), value)
    if items is None:
        return function(value)
    if isinstance(value, Mapping) and type(value) is not dict:
        try:
            return type(value)(items)  # type: ignore[call-arg]
        except Exception:  # a mapping with a constructor of its own
            return items
    return items


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """The leaves of `map_structure` that are tensors."""
    return (tensor for _, tensor in named_tensors(value))


def named_tensors(value: Any, name: str = "input") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a batch with their path in it: "input_ids", "0", "1.2"."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, str(key))
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from named_tensors(item, str(i) if name == "input" else f"{name}.{i}")


def batch_size(batch: Any) -> int:
    first = next((t for _, t in named_tensors(batch) if t.dim()), None)
    return first.shape[0] if first is not None else 1


def is_transformed() -> bool:
    """Whether a transform of torch.func is running: tensors may be slices of others."""
    return torch._C._functorch.peek_interpreter_stack() is not None


K = TypeVar("K")
V = TypeVar("V")


class IdentityTable(Generic[K, V]):
    """Values, each kept as long as its object lives. `weakref.WeakKeyDictionary` compares by `==`, which tensors do by element."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[K], V]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __setitem__(self, key: K, value: V) -> None:
        number, entries = id(key), self._entries

        def forget(reference: Any) -> None:
            entry = entries.get(number)
            if entry is not None and entry[0] is reference:  # another object may have the number by now
                del entries[number]

        entries[number] = weakref.ref(key, forget), value

    def get(self, key: K) -> V | None:
        entry = self._entries.get(id(key))
        return entry[1] if entry is not None and entry[0]() is key else None

    def pop(self, key: K) -> None:
        self._entries.pop(id(key), None)
