"""The command behind `gradcheck watch --`: which interpreter runs which code. No torch here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradcheck.errors import ConfigError

_PYTHON = re.compile(r"python(\d+(\.\d+)*)?(\.exe)?$", re.IGNORECASE)
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
LAUNCHER, LAUNCHER_MODULE = "torchrun", "torch.distributed.run"
EXAMPLE = "gradcheck watch -- python train.py --epochs 3"
INSIDE = "with another launcher, put `with gradcheck.watch(model, optimizer):` around the loop"


@dataclass(frozen=True)
class Program:
    """A Python program as the user would start it."""

    interpreter: str
    options: tuple[str, ...]  # of the interpreter
    kind: Literal["script", "module", "code", "torchrun"]
    what: str  # path, module name, or source text; "torchrun", whose arguments name the program
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return {"script": self.what, "module": f"-m {self.what}", "code": "-c ...", "torchrun": "torchrun"}[self.kind]


def program_of(words: Sequence[str]) -> Program:
    """`python [OPTIONS] train.py ARGUMENTS`, `python -m package.train`, `python -c CODE`, `train.py`, or torchrun.

    Raises ConfigError for others.
    """
    if not words:
        raise ConfigError("watch needs a command", hint=EXAMPLE)
    first = words[0]
    if first.endswith(".py"):
        return _script(sys.executable, (), first, words[1:])
    if os.path.basename(first) == LAUNCHER:
        return _of_launcher(first, words[1:])
    if not _PYTHON.fullmatch(os.path.basename(first)):
        raise ConfigError(f"{first} is not a Python program", hint=f"{EXAMPLE}; {INSIDE}")
    interpreter = shutil.which(first)
    if interpreter is None:
        raise ConfigError(f"there is no command {first}", hint=EXAMPLE)
    return _of_python(_same(interpreter), words[1:])


def _of_launcher(command: str, words: Sequence[str]) -> Program:
    """torchrun belongs to the interpreter that its first line names."""
    path = shutil.which(command)
    if path is None:
        raise ConfigError(f"there is no command {command}", hint="gradcheck watch -- python -m torch.distributed.run ...")
    line = Path(path).read_bytes().partition(b"\n")[0].decode(errors="replace")
    interpreter = line.removeprefix("#!").strip()
    if not line.startswith("#!") or not os.access(interpreter, os.X_OK):
        raise ConfigError(f"{path} does not say which Python runs it", hint="gradcheck watch -- python -m torch.distributed.run ...")
    own = os.path.dirname(os.path.abspath(interpreter)) == os.path.dirname(os.path.abspath(sys.executable))
    return Program(sys.executable if own else interpreter, (), "torchrun", LAUNCHER, tuple(words))


def _same(interpreter: str) -> str:
    """The name under which this very interpreter runs, where it is that: a virtual environment lies in the name."""
    return sys.executable if os.path.abspath(interpreter) == os.path.abspath(sys.executable) else interpreter


def _of_python(interpreter: str, words: Sequence[str]) -> Program:
    options: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-m", "-c"):
            if not rest:
                raise ConfigError(f"python {word} needs a {'module' if word == '-m' else 'program'}", hint=EXAMPLE)
            if rest[0] == LAUNCHER_MODULE:
                return Program(interpreter, tuple(options), "torchrun", LAUNCHER, tuple(rest[1:]))
            return Program(interpreter, tuple(options), "module" if word == "-m" else "code", rest[0], tuple(rest[1:]))
        if not word.startswith("-") or word == "-":
            return _script(interpreter, tuple(options), word, rest)
        options.append(word)
        if word in _WITH_VALUE and rest:
            options.append(rest.pop(0))
    raise ConfigError("the command names no script", hint=EXAMPLE)


def _script(interpreter: str, options: tuple[str, ...], path: str, arguments: Sequence[str]) -> Program:
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}", hint=EXAMPLE)
    return Program(interpreter, options, "script", path, tuple(arguments))


def check_interpreter(program: Program) -> None:
    """Raises ConfigError when another interpreter than ours cannot import gradcheck."""
    if program.interpreter == sys.executable:
        return
    asked = subprocess.run([program.interpreter, *program.options, "-c", "import gradcheck"], capture_output=True, text=True)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["it could not be started"])[-1]
        hint = f"{program.interpreter} -m pip install gradcheck"
        raise ConfigError(f"{program.interpreter} cannot import gradcheck: {last}", hint=hint)
