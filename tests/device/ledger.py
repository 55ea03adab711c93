"""What a program asked of the pretend accelerator: launches with the bytes they move, and waits of the host, with their places."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Ledger:
    launches: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)  # bytes
    written: Counter[str] = field(default_factory=Counter)
    largest: int = 0  # bytes of the largest tensor that an operation made
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, and the innermost line of gradcheck's

    @property
    def moved(self) -> int:
        return self.read.total() + self.written.total()


_open: list[Ledger] = []


@contextlib.contextmanager
def recorded() -> Iterator[Ledger]:
    """Collects what is asked of the device meanwhile."""
    ledger = Ledger()
    _open.append(ledger)
    try:
        yield ledger
    finally:
        _open.remove(ledger)


def wait(kind: str) -> None:
    for ledger in _open:
        ledger.waits[kind, _place()] += 1


def launch(name: str, read: int, written: int) -> None:
    for ledger in _open:
        ledger.launches[name] += 1
        ledger.read[name] += read
        ledger.written[name] += written
        ledger.largest = max(ledger.largest, written)


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "gradcheck/" in name and "/tests/" not in name:
            return f"{name[name.rindex('gradcheck/') :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "the program"
