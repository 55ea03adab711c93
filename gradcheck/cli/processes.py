"""What a process and its parent can do for each other: end together, end copies of themselves, say where the code is. No torch."""

import contextlib
import os
import re
import signal
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from gradcheck.files import remove_folders_of

OWN = str(Path(__file__).resolve().parent.parent) + os.sep
# Bytes. measured: the usual 8 MB end at a chain of 16,000 to 20,000 small layers, 30 MB hold one of 50,000 (torch 2.13); Linux keeps
# 128 MB free below the stack.
STACK = 100 << 20
_PR_SET_PDEATHSIG = 1
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


def die_with_parent(parent: int) -> None:
    """When the parent is killed, this process ends as if it were told to. Only Linux can."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def deepen_stack() -> None:
    """Room for torch to free long chains of operations: where Python has looked at their nodes, it does so recursively.

    The stack of the main thread grows up to the limit of the moment; it uses no memory before.
    """
    if sys.platform != "linux":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    most = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_STACK, (most, hard))


def end_tree(pid: int) -> None:
    """Kills a process and all that it started, and removes their temporary folders."""
    every = (*_descendants(pid), pid)
    for each in every:
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)
    remove_folders_of(every)


def _descendants(pid: int) -> list[int]:
    """Where there is a /proc to read; the youngest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        queue = [child for each in queue for child in children.get(each, [])]
        found += queue
    return found[::-1]


def leave_forks(forget: Callable[[], None]) -> None:
    """A copy of this process that the user's code makes with os.fork ends where it would come back to gradcheck. For good: not undone."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _leave_later(sys._getframe(1), forget))


def _leave_later(frame: FrameType | None, forget: Callable[[], None]) -> None:
    forget()
    ours = set()
    while frame is not None:
        if frame.f_code.co_filename.endswith(os.sep + "popen_fork.py"):  # multiprocessing's own: it ends by itself
            return
        if frame.f_code.co_filename.startswith(OWN):
            ours.add(frame)
        frame = frame.f_back

    def leave(frame: FrameType, event: str, arg: Any) -> None:
        if event == "return" and frame.f_back in ours:
            os._exit(0)

    sys.setprofile(leave)


def place_in(trace: str) -> str:
    """The user's innermost line in what faulthandler wrote, else the outermost one that gradcheck called; "" where there is none."""
    frames = [(m["file"], place_of(m["file"], int(m["line"]), m["name"])) for m in _FRAME.finditer(trace)]
    others = []
    for file, place in frames:
        if file.startswith(OWN):
            break
        if is_users(file):
            return place
        others.append(place)
    return others[-1] if others else ""


def is_users(file: str) -> bool:
    """Whether a file of code is neither gradcheck's nor installed."""
    installed = {sysconfig.get_path(x) + os.sep for x in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not file.startswith((*installed, OWN, "<")) and "-packages" + os.sep not in file


def place_of(file: str, line: int, name: str) -> str:
    return f"{_shown(file)}:{line}, in {name}"


def _shown(file: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        near = os.path.relpath(file)
        return file if near.startswith("..") else near
    return file
