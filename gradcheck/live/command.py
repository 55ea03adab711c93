"""The command after `--` of `gradcheck watch` and `gradcheck scan`: which interpreter runs which code. No torch here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from gradcheck.errors import ConfigError

_PYTHON = re.compile(r"python(\d+(\.\d+)*)?(\.exe)?$", re.IGNORECASE)
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
# How launchers are called: the words behind the command, or behind `python -m`, up to their options.
_LAUNCHERS = {
    ("torchrun",): "torchrun",
    ("torch.distributed.run",): "torchrun",
    ("accelerate", "launch"): "accelerate launch",
    ("accelerate-launch",): "accelerate launch",
    ("accelerate.commands.launch",): "accelerate launch",
    ("accelerate.commands.accelerate_cli", "launch"): "accelerate launch",
}
_LONG_NAME = "'''exec' "  # how installers begin the second line of a script whose interpreter does not fit into the first one
# Not from the working directory; torch is looked for only: importing it takes seconds.
FIND = """import sys
if not sys.flags.safe_path: del sys.path[0]
import gradcheck, importlib.util
if not importlib.util.find_spec("torch"): raise ModuleNotFoundError("there is no PyTorch")"""
EXAMPLE = "gradcheck {command} -- python train.py --epochs 3"
INSIDE = "with another launcher, put gradcheck behind it, or `with gradcheck.watch(model, optimizer):` around the loop"


@dataclass(frozen=True)
class UserProgram:
    """A Python program as the user would start it."""

    interpreter: str
    options: tuple[str, ...]  # of the interpreter
    kind: Literal["script", "module", "code"]
    what: str  # path, module name, or source text; of a launcher nothing: its arguments name the program
    arguments: tuple[str, ...]
    launcher: str = ""  # torchrun, accelerate launch

    @property
    def name(self) -> str:
        return self.launcher or {"script": self.what, "module": f"-m {self.what}", "code": "-c ..."}[self.kind]


def program_of(words: Sequence[str], command: str = "watch") -> UserProgram:
    """`python [OPTIONS] train.py ARGUMENTS`, `python -m package.train`, `python -c CODE`, `train.py`, torchrun, `accelerate launch`, or
    the console script of a package. Raises ConfigError for others.
    """
    example = EXAMPLE.format(command=command)
    if not words:
        raise ConfigError(f"{command} needs a command", hint=example)
    first = words[0]
    if first.endswith(".py"):
        return _script(sys.executable, (), first, words[1:], example)
    if first.endswith(".ipynb"):
        raise ConfigError(f"{first} is a notebook, not a command", hint=f"gradcheck scan {first}")
    path = shutil.which(first)
    if _PYTHON.fullmatch(os.path.basename(first)):
        if path is None:
            raise ConfigError(f"there is no command {first}", hint=example)
        return _of_python(_same(path), words[1:], example)
    if path is None and _launcher((os.path.basename(first), *words[1:])) is None:
        raise ConfigError(f"{first} is not a Python program", hint=f"{example}; {INSIDE}")
    return _installed(first, path, words[1:], example)


def _launcher(words: Sequence[str]) -> tuple[str, int] | None:
    """The launcher that the words call, and how many of them name it."""
    return next(((name, len(call)) for call, name in _LAUNCHERS.items() if tuple(words[: len(call)]) == call), None)


def _installed(first: str, path: str | None, words: Sequence[str], example: str) -> UserProgram:
    """The script that an installer wrote for a command; its first lines name the interpreter that runs it."""
    found = _launcher((os.path.basename(first), *words))
    if path is None:
        raise ConfigError(f"there is no command {first}", hint="install it, or start it with `python -m`")
    named = _interpreter(Path(path))
    if named is None:
        if found is None:
            raise ConfigError(f"{first} is not a Python program", hint=f"{example}; {INSIDE}")
        raise ConfigError(f"{path} does not say which Python runs it", hint="start it with `python -m`")
    interpreter, options = named
    if found is None:
        return UserProgram(interpreter, options, "script", path, tuple(words))
    return UserProgram(interpreter, options, "module", "", tuple(words[found[1] - 1 :]), found[0])


def _interpreter(path: Path) -> tuple[str, tuple[str, ...]] | None:
    """The Python that a file's first lines name, with its options; None if they name none."""
    try:
        with path.open("rb") as file:
            lines = [file.readline(4096).decode(errors="replace").strip() for _ in range(2)]
    except OSError:
        return None
    if not lines[0].startswith("#!"):
        return None
    text = lines[1].removeprefix(_LONG_NAME).replace('"$0" "$@"', "") if lines[1].startswith(_LONG_NAME) else lines[0][2:]
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    if words and os.path.basename(words[0]) == "env":
        words = [w for w in words[1:] if w != "-S"]
    found = shutil.which(words[0]) if words else None
    if found is None or not _PYTHON.fullmatch(os.path.basename(found)):
        return None
    own = os.path.dirname(os.path.abspath(found)) == os.path.dirname(os.path.abspath(sys.executable))
    return sys.executable if own else found, tuple(words[1:])


def _same(interpreter: str) -> str:
    """The name under which this interpreter runs, if it is the same one: the name tells the virtual environment."""
    return sys.executable if os.path.abspath(interpreter) == os.path.abspath(sys.executable) else interpreter


def _of_python(interpreter: str, words: Sequence[str], example: str) -> UserProgram:
    options: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-m", "-c"):
            if not rest:
                raise ConfigError(f"python {word} needs a {'module' if word == '-m' else 'program'}", hint=example)
            found = _launcher(rest) if word == "-m" else None
            if found is not None:
                return UserProgram(interpreter, tuple(options), "module", "", tuple(rest[found[1] :]), found[0])
            return UserProgram(interpreter, tuple(options), "module" if word == "-m" else "code", rest[0], tuple(rest[1:]))
        if not word.startswith("-") or word == "-":
            return _script(interpreter, tuple(options), word, rest, example)
        options.append(word)
        if word in _WITH_VALUE and rest:
            options.append(rest.pop(0))
    raise ConfigError("the command names no script", hint=example)


def _script(interpreter: str, options: tuple[str, ...], path: str, arguments: Sequence[str], example: str) -> UserProgram:
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}", hint=example)
    return UserProgram(interpreter, options, "script", path, tuple(arguments))


def check_interpreter(program: UserProgram) -> None:
    """Raises ConfigError when an interpreter has no torch, or one other than ours cannot import gradcheck."""
    if program.interpreter == sys.executable and find_spec("torch"):
        return
    asked = subprocess.run([program.interpreter, *program.options, "-c", FIND], capture_output=True, text=True)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["it could not be started"])[-1]
        hint = f"{program.interpreter} -m pip install gradcheck"
        if program.kind == "script" and program.what and find_spec("torch"):
            hint += f", or leave `python` out: -- {program.what} runs in gradcheck's own, {sys.executable}"
        raise ConfigError(f"{program.interpreter} cannot run gradcheck: {last}", hint=hint)
