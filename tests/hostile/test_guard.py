"""The process of a command may do what it likes: its parent takes no exit code that it was not told, and ends what does not end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = "open('pid', 'w').write(str(os.getpid())); open('there', 'w').close()"
ROOT = Path(__file__).parent.parent.parent
START = """
import os, sys, time, signal
time.perf_counter = time.monotonic  # where budgets count CPU seconds, a parent that waits spends none
from gradcheck import interrupts
from gradcheck.cli import guard

def user():
    {user}

def command():
    with interrupts.ending(guard.heard):
        try:
            guard.budget({budget})
            user()
            print("verdict", flush=True)
        except KeyboardInterrupt:
            sys.exit(interrupts.exit_code())
    sys.exit({code})

guard.SLACK, guard.TIMES, guard.LAST, guard.AGAIN = {slack}, 1.0, 1.5, 0.7
sys.exit(guard.run(command))
"""


def started(tmp_path: Path, user: str, *, code: int = 0, budget: float | None = None, slack: float = 30.0) -> subprocess.Popen[str]:
    file = tmp_path / "code.py"
    file.write_text(START.format(user=user, code=code, budget=budget, slack=slack))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(file)], cwd=tmp_path, env=environment, text=True, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_that_is_told_is_taken(code: int, tmp_path: Path) -> None:
    assert ended(started(tmp_path, "pass", code=code)) == (code, "verdict\n", "")


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("os._exit(0)", "code.py:8, in user, ended the process with os._exit(0) before there was a verdict"),
        ("os._exit(7)", "os._exit(7)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV before there was a verdict"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "run out of memory"),
        ("os.closerange(3, 64)", "before there was a verdict"),
    ],
)
def test_a_process_that_is_gone_without_a_verdict_is_a_failure(user: str, said: str, tmp_path: Path) -> None:
    code, _, err = ended(started(tmp_path, user))
    assert code == 2 and said in err and err.count("error:") == 1 and "help:" in err


@pytest.mark.parametrize("user", ["time.sleep(1000)", "while True: pass", "os.read(os.pipe()[0], 1)"])
def test_what_does_not_return_is_ended_and_named(user: str, tmp_path: Path) -> None:
    code, out, err = ended(started(tmp_path, user, budget=0.1, slack=0.6))
    assert (code, out) == (2, "") and "code.py:8, in user had not returned" in err and "--budget" in err


def test_a_copy_made_by_the_code_does_not_go_on(tmp_path: Path) -> None:
    """It ends where it would come back to gradcheck, which calls the code."""
    called = "from gradcheck.errors import closest; closest('a', (str(os.fork()) for _ in range(1)))"
    assert ended(started(tmp_path, called)) == (0, "verdict\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_signal_ends_both_processes(number: signal.Signals, everywhere: bool, tmp_path: Path) -> None:
    """Also when both get it, as from a terminal."""
    process = started(tmp_path, f"{HERE}; time.sleep(60)")
    child = waited_for(tmp_path)
    if everywhere:
        os.kill(child, number)
    process.send_signal(number)
    assert ended(process)[0] == 128 + number
    assert gone(child)


def test_a_signal_that_the_code_swallows_ends_it_all_the_same(tmp_path: Path) -> None:
    process = started(tmp_path, f"for n in (2, 15, 1): signal.signal(n, signal.SIG_IGN)\n    {HERE}; time.sleep(60)")
    child = waited_for(tmp_path)
    process.terminate()
    code, _, err = ended(process)
    assert code == 143 and err == "interrupted\n" and gone(child)


def test_a_process_that_has_to_be_killed_leaves_no_folder(tmp_path: Path) -> None:
    folder = "from gradcheck.files import temporary_folder; kept = temporary_folder(); open(kept.name + '/file', 'w').close()"
    process = started(tmp_path, f"{folder}\n    for n in (2, 15, 1): signal.signal(n, signal.SIG_IGN)\n    {HERE}; time.sleep(60)")
    child = waited_for(tmp_path)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 129 and not [*Path(tempfile.gettempdir()).glob(f"gradcheck-{child}-*")]


def test_a_signal_whose_exception_is_lost_comes_again(tmp_path: Path) -> None:
    """As in a destructor, whose exceptions Python drops."""
    again = "try: time.sleep(60)\n    except BaseException: print('again')"
    user = f"try:\n        {HERE}; time.sleep(60)\n    except BaseException: pass\n    {again}"
    process = started(tmp_path, user)
    waited_for(tmp_path)
    process.terminate()
    assert ended(process)[1].startswith("again\n")


def test_a_signal_in_a_destructor_shows_no_trace(tmp_path: Path) -> None:
    """Python tells what a destructor raises, and drops it."""
    user = f"class Late:\n        def __del__(self):\n            {HERE}; time.sleep(60)\n    Late(); time.sleep(60)"
    process = started(tmp_path, user)
    waited_for(tmp_path)
    process.terminate()
    assert ended(process) == (143, "", "")


def test_threads_and_exit_handlers_of_the_code_end_as_in_python(tmp_path: Path) -> None:
    thread = "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()"
    user = f"import atexit, threading; atexit.register(print, 'handler'); {thread}"
    code, out, _ = ended(started(tmp_path, user))
    assert (code, out) == (0, "verdict\nthread\nhandler\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_parent_that_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    process = started(tmp_path, f"{HERE}; time.sleep(60)")
    child = waited_for(tmp_path)
    process.kill()
    process.wait()
    assert gone(child)


def waited_for(folder: Path) -> int:
    """The process of the command, once it runs the user's code."""
    until = time.monotonic() + 20
    while not (folder / "there").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    return int((folder / "pid").read_text())


def gone(pid: int) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only there the stack of a running process grows")
def test_a_long_chain_of_operations_is_freed(tmp_path: Path) -> None:
    """torch frees the nodes that Python has seen recursively: 25,000 layers overflow 8 MB."""
    user = (
        "import torch\n"
        "    x = torch.zeros(1, requires_grad=True)\n"
        "    for _ in range(60_000):\n        x = x * 1.0\n"
        "    node = x.grad_fn\n"
        "    while node is not None:\n        node = node.next_functions[0][0] if node.next_functions else None\n"
        "    del x"
    )
    assert ended(started(tmp_path, user)) == (0, "verdict\n", "")
