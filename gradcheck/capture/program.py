"""A program as Python starts it: its code, its `__main__`, and what it finds in `sys.argv` and `sys.path`. No torch here."""

import builtins
import importlib.util
import linecache
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Literal

from gradcheck.workload import notebook

Kind = Literal["script", "module", "code", "notebook", "cell"]


def start(kind: Kind, what: str, arguments: Sequence[str], module: ModuleType, home: str, file: str = "") -> Iterator[CodeType]:
    """The code of a program, to be run in `module`, which is its `__main__` from now on: one piece, or one for each cell.

    `what`: a file, the name of a module, or the text itself. `home`: the folder of the file, or the working directory. `file`: where
    the file is read, if not at `what`. For `-m` the packages that hold the module are imported.
    """
    names = module.__dict__
    names.update(__name__="__main__", __builtins__=builtins, __spec__=None, __cached__=None)
    sys.modules["__main__"] = module
    sys.argv[:] = [{"module": "-m", "code": "-c"}.get(kind, what), *arguments]
    if not sys.flags.safe_path:
        sys.path.insert(0, "" if kind == "code" else home)
    if kind == "module":
        code = _of_module(what, module)
        sys.argv[0] = names["__file__"]
        yield code
    elif kind == "code":
        yield compile(what, "<string>", "exec", dont_inherit=True)
    elif kind == "notebook":
        yield from notebook.start(file or what, names)
    else:
        path = os.path.abspath(file or what)
        names["__file__"] = path
        linecache.checkcache(path)
        source = Path(path).read_bytes()
        if b"get_ipython" in source:  # a notebook that was exported
            names["get_ipython"] = notebook.Shell
        yield compile(source, path, "exec", dont_inherit=True)


def _of_module(name: str, module: ModuleType) -> CodeType:
    """As `python -m` finds it; for a package, its `__main__`. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = importlib.util.find_spec(name)
    code = getattr(spec.loader, "get_code", lambda name: None)(name) if spec is not None else None
    if spec is None or code is None:
        raise ModuleNotFoundError(f"No module named {name}", name=name)
    parts = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": spec.loader, "__package__": spec.parent, "__spec__": spec}
    module.__dict__.update(parts)
    if spec.origin is not None and spec.origin.endswith(".py"):  # a stale bytecode file must not stand for the source
        code = compile(Path(spec.origin).read_bytes(), spec.origin, "exec", dont_inherit=True)
    return code
