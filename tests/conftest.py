"""Budgets count CPU seconds in the tests, so that what is found within one does not depend on what else the machine does."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads that wait for each other spend seconds of CPU, too
time.perf_counter = time.process_time  # before gradcheck is imported: some of its clocks are default arguments

_imported = 0  # modules, when objects were last set aside

# A job in the background ignores Ctrl-C, and so does every program that it starts: the interrupts of the tests would be lost.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hostile-cases", type=int, default=500, help="damaged files that tests/hostile tries")
    parser.addoption("--hostile-seed", type=int, default=0, help="of these files")
    parser.addoption("--slow", action="store_true", help="also the tests of slow_tests.txt, the longest ones of their kind")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes four seconds and more where others of the kind are quicker; a test that is named is run anyway."""
    if config.getoption("--slow") or any("::" in word for word in config.args):
        return
    slow = set((Path(__file__).parent / "slow_tests.txt").read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in slow])
    items[:] = [item for item in items if item.nodeid not in slow]


def pytest_collection_finish() -> None:
    _set_aside()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and (nextitem.path != item.path or len(sys.modules) > _imported + 100):
        _set_aside()


def _set_aside() -> None:
    """The million objects of imported modules and collected tests: every search for living models and every collection would go through
    them, half of the seconds of a watched loop."""
    global _imported
    _imported = len(sys.modules)
    gc.collect()
    gc.freeze()


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what waits, and for deadlines that several processes share: each has a CPU clock of its own."""
    monkeypatch.setattr(time, "perf_counter", time.monotonic)
