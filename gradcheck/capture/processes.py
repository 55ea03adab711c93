"""The processes that a script starts; what they do is not seen."""

from __future__ import annotations

import multiprocessing.process
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradcheck.instrument.patches import Patches


def note_processes(patches: Patches, started: list[str]) -> None:
    """While the patches hold, notes the Python processes that the script starts, without the workers of data loaders."""

    def of_command(original: Callable[..., Any]) -> Callable[..., Any]:
        def popen(self: Any, args: Any, *more: Any, **named: Any) -> Any:
            words = args.split() if isinstance(args, str) else [str(a) for a in args] if isinstance(args, (list, tuple)) else []
            if words and ("python" in Path(words[0]).name or words[0].endswith(".py")):
                started.append(" ".join(["python", *words[1:3]]))
            return original(self, args, *more, **named)

        return popen

    def of_function(original: Callable[..., Any]) -> Callable[..., Any]:
        def start(self: Any) -> Any:
            name = getattr(getattr(self, "_target", None), "__name__", "")
            if name != "_worker_loop":
                started.append(name or type(self).__name__)
            return original(self)

        return start

    patches.wrap(subprocess.Popen, "__init__", of_command)
    patches.wrap(multiprocessing.process.BaseProcess, "start", of_function)
