"""A script is ended when its time is up, whatever it does with the exception that ends it."""

from __future__ import annotations

import gc
import signal
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from gradcheck.capture import alarm
from gradcheck.capture.script import Capture, captured
from gradcheck.capture.spec import ScriptSpec

SPIN = """
import time
def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
"""
# Scripts that would run for ten minutes.
ENDLESS = {
    "a loop": "spin(600)",
    "asleep": "time.sleep(600)",
    "waiting for another thread": "import queue; queue.Queue().get()",
    "waiting for another process": "import subprocess; subprocess.run(['sleep', '600'])",
    "in destructors": """
        class Slow:
            def __del__(self): spin(600)
        while True:
            Slow()
        """,
    "in destructors, all in one line": """
        class Slow:
            def __del__(self): spin(600)
        list(map(lambda _: Slow() and None, range(10**9)))
        """,
    "in callbacks of weak references": """
        import weakref
        class Thing: pass
        while True:
            weakref.ref(Thing(), lambda _: spin(600)), (lambda x: weakref.ref(x, lambda _: spin(600)))(Thing())
            x = Thing(); r = weakref.ref(x, lambda _: spin(600)); del x
        """,
    "in callbacks of the garbage collector": """
        import gc
        gc.callbacks.append(lambda phase, info: spin(600))
        try:
            while True: gc.collect()
        finally:
            gc.callbacks.clear()
        """,
    "in callbacks of the garbage collector, which stay": """
        import gc
        gc.callbacks.append(lambda phase, info: spin(600))
        while True: gc.collect()
        """,
    "starting again, over and over": """
        def main():
            try: spin(600)
            except BaseException: main()
        main()
        """,
    "catching everything": """
        while True:
            try: spin(600)
            except: pass
        """,
    "catching BaseException, and going on": """
        def attempt():
            try:
                spin(600)
            except BaseException as error:
                print("failed:", type(error).__name__)
        for _ in range(1000): attempt()
        """,
    "suppressing everything": """
        import contextlib
        while True:
            with contextlib.suppress(BaseException): spin(600)
        """,
    "with an alarm of its own": """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            spin(600)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        """,
    "with an alarm that stays": """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        spin(600)
        """,
    "in a thread that is waited for": "import threading; t = threading.Thread(target=spin, args=(600,)); t.start(); t.join()",
    "in a thread that is not waited for": "import threading; threading.Thread(target=spin, args=(600,)).start()",
    "in a coroutine": """
        import asyncio
        async def work():
            while True: await asyncio.sleep(0.01)
        asyncio.run(work())
        """,
    "in what it registered for its exit": "import atexit; atexit.register(spin, 600)",
}


def state() -> tuple[object, ...]:
    handlers = tuple(signal.getsignal(s) for s in (signal.SIGINT, signal.SIGALRM, signal.SIGVTALRM, signal.SIGUSR1))
    handlers += (signal.getitimer(signal.ITIMER_REAL)[1],)
    return (*handlers, sys.unraisablehook, threading.excepthook, sys.gettrace(), set(threading.enumerate()), gc.callbacks[:])


def ran(folder: Path, text: str, seconds: float = 0.2) -> Capture:
    path = folder / "train.py"
    path.write_text(SPIN + textwrap.dedent(text))
    with captured(ScriptSpec(str(path), budget=seconds)) as capture:
        return capture


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm, "GRACE", 0.1)
    monkeypatch.setattr("gradcheck.capture.clock.GRACE", 0.1)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_script_ends_when_its_time_is_up(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    capture = ran(tmp_path, ENDLESS[name])
    assert capture.ending.how == "budget" and 0.2 <= capture.seconds < 300
    assert state() == before
    said = capsys.readouterr().err
    assert "Stop:" not in said and "Traceback" not in said


def test_cleaning_up_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm, "GRACE", 300)
    monkeypatch.setattr("gradcheck.capture.clock.GRACE", 300)
    capture = ran(tmp_path, "done = []\ntry: spin(600)\nfinally:\n    spin(0.2)\n    done.append('saved')\n")
    assert capture.ending.how == "budget" and capture.module.done == ["saved"]


TRAIN = """
import torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
def step():
    optimizer.zero_grad(); model(torch.randn(8, 4)).square().mean().backward(); optimizer.step()
"""


def steps_of(capture: Capture) -> int:
    return max(len(w.steps) for w in capture.recorder.optimizers.values())


def test_a_script_that_has_begun_to_train_leaves_time_for_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcheck.capture.clock.SCRIPT_SHARE", 0.2 / 600)
    capture = ran(tmp_path, TRAIN + "while True: step(); time.sleep(0.01)", seconds=600)
    assert capture.ending.how == "budget" and steps_of(capture) and capture.seconds < 600


def test_a_script_that_catches_everything_takes_no_more_steps_than_it_is_given(tmp_path: Path) -> None:
    text = TRAIN + "while True:\n    try: step()\n    except BaseException as error: print(error)\n    time.sleep(0.001)\n"
    (tmp_path / "train.py").write_text(SPIN + text)
    with captured(ScriptSpec(str(tmp_path / "train.py"), steps=10, quiet=True)) as capture:
        assert capture.ending.how == "stopped"


def test_training_in_a_thread_ends_with_the_script(tmp_path: Path) -> None:
    before = state()
    loop = "def loop():\n    while True: step()\n"
    text = TRAIN + loop + "import threading\nthread = threading.Thread(target=loop)\nthread.start()\nthread.join()"
    (tmp_path / "train.py").write_text(text)
    with captured(ScriptSpec(str(tmp_path / "train.py"), steps=10)) as capture:
        assert steps_of(capture) == 10 and not capture.module.thread.is_alive()
    assert state() == before


def test_a_pool_of_threads_ends_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\npool.submit(int).result()\n"
    (tmp_path / "train.py").write_text(TRAIN + pool + "while True: step()")
    with captured(ScriptSpec(str(tmp_path / "train.py"), steps=10)) as capture:
        assert steps_of(capture) == 10
        capture.module.pool.shutdown()
    assert not caplog.records


@pytest.mark.parametrize("caught", ["pass", "raise", "spin(600)"])
def test_ctrl_c_ends_gradcheck_whatever_the_script_makes_of_it(caught: str, tmp_path: Path) -> None:
    before = state()
    text = f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT); spin(600)\nexcept KeyboardInterrupt: {caught}\n"
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, text, seconds=600)
    assert state() == before
