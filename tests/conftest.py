"""Budgets count CPU seconds in the tests, so that what is found within one does not depend on what else the machine does."""

from __future__ import annotations

import signal
import threading
import time

import pytest

time.perf_counter = time.process_time  # before gradcheck is imported: some of its clocks are default arguments

# A job in the background ignores Ctrl-C, and so does every program that it starts: the interrupts of the tests would be lost.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hostile-cases", type=int, default=500, help="damaged files that tests/hostile tries")
    parser.addoption("--hostile-seed", type=int, default=0, help="of these files")


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what waits, and for deadlines that several processes share: each has a CPU clock of its own."""
    monkeypatch.setattr(time, "perf_counter", time.monotonic)
