"""What is known of objects that are told apart by identity."""

import weakref
from typing import Any, Generic, TypeVar

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
