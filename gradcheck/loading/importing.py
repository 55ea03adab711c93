"""Running the user's file so that the process stays as it was: paths, arguments, random states, output, bytecode."""

import contextlib
import importlib
import importlib.util
import inspect
import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradcheck.errors import TargetError, closest
from gradcheck.workload.rng import preserve_rng, seed_all
from gradcheck.workload.source_sites import Sites, display_path, failure, origin_of, record_sites

# The user's modules of the latest load. They stay importable, since a forward method may import late, until the next load.
_loaded: dict[str, ModuleType] = {}


@dataclass
class ImportSession:
    """One load: what is imported, and where its modules are created."""

    sites: Sites
    files: list[str] = field(default_factory=list)
    replaced: dict[str, ModuleType] = field(default_factory=dict)  # other modules of the process that had the same name
    before: frozenset[str] = frozenset()  # names of modules that are none of this load
    _modules: dict[str, ModuleType] = field(default_factory=dict)  # by absolute path

    def open(self, name: str) -> ModuleType:
        """The module at a path, or of a dotted name. Raises TargetError when there is none or it fails."""
        first, space, rest = name.partition(" ")
        if space and not Path(name).exists() and (first.startswith("python") or Path(first).is_file()):
            command = f"{first} -- {rest}" if Path(first).is_file() else f"-- {name}"
            raise TargetError(f"{name!r} is a command, not a target", hint=f"gradcheck scan {command}")
        return self._open_file(name) if looks_like_path(name) else self._import(name)

    def _open_file(self, name: str) -> ModuleType:
        path = Path(name)
        if not path.exists():
            raise TargetError(f"there is no file {name}", hint=_similar_file(path))
        if path.is_dir() or path.suffix != ".py":
            kind = "a folder" if path.is_dir() else f"a {path.suffix or 'suffixless'} file"
            hint = "name the .py file that builds the model"
            if path.suffix == ".ipynb":
                hint = f"gradcheck scan {name} runs it; for its model: jupyter nbconvert --to script {name}, and name {path.stem}.py:MODEL"
            raise TargetError(f"{name} is {kind}, not a Python file", hint=hint)
        absolute = str(path.resolve())
        if absolute not in self._modules:
            self._modules[absolute] = self._run(Path(absolute))
        return self._modules[absolute]

    def _run(self, path: Path) -> ModuleType:
        name, root = _dotted_name(path)
        for folder in (str(Path.cwd()), root):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None:
            raise TargetError(f"{display_path(path)} cannot be imported", hint="give the file a name that ends in .py")
        module = importlib.util.module_from_spec(spec)
        with _failures(f"{display_path(path)} cannot be imported"):
            if "." in name:
                importlib.import_module(name.rpartition(".")[0])
            if name in sys.modules:
                self.replaced[name] = sys.modules[name]
            sys.modules[name] = module
            linecache.checkcache(str(path))
            # Compiled here rather than by the loader: a stale bytecode file must not stand for the source that findings point at.
            exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
        self.files.append(display_path(path))
        return module

    def _import(self, name: str) -> ModuleType:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        importlib.invalidate_caches()
        with _failures(f"{name} cannot be imported"):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                    hint = "targets are model.py, model.py:name or package.module:name; run gradcheck where the package can be imported"
                    raise TargetError(f"there is no file and no module {name}", hint=hint) from error
                raise
        if origin_of(getattr(module, "__file__", None) or "<built-in>") == "user":
            self.files.append(display_path(str(module.__file__)))
        return module

    def note_files(self) -> None:
        """Adds the files of the user's modules that were imported by now."""
        for name in [n for n in sys.modules if n not in self.before]:
            if _is_users(sys.modules[name]):
                self.files.append(display_path(str(sys.modules[name].__file__)))
        self.files[:] = dict.fromkeys(self.files)

    def attribute(self, reference: str, default: str | None = None) -> tuple[Any, ModuleType, str]:
        """(object, its module, its name) of "FILE.py:name" or "module:name". Raises TargetError."""
        home, name = split_reference(reference)
        name = name or default or ""
        module = self.open(home)
        return get_attribute(module, name, home), module, name


@contextmanager
def session(seed: int) -> Iterator[ImportSession]:
    """Runs the user's code: seeded, its prints on stderr, its modules recorded; everything is put back at the end."""
    for name, module in _loaded.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _loaded.clear()
    before, current = frozenset(sys.modules), None
    path, argv, folder, bytecode = list(sys.path), list(sys.argv), os.getcwd(), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.argv = ["gradcheck"]  # a file that reads its command line must not read ours
    try:
        with preserve_rng(), contextlib.redirect_stdout(sys.stderr), record_sites() as sites:
            seed_all(seed)
            current = ImportSession(sites, before=before)
            yield current
            current.note_files()
    finally:
        sys.path[:], sys.argv, sys.dont_write_bytecode = path, argv, bytecode
        if os.getcwd() != folder:
            os.chdir(folder)
        if current is not None:
            sys.modules.update(current.replaced)
        _loaded.update((n, m) for n, m in list(sys.modules.items()) if n not in before and _is_users(m))


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and origin_of(file) == "user"


def looks_like_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name or os.sep in name or Path(name).exists()


def split_reference(text: str) -> tuple[str, str]:
    """ "model.py:name" -> ("model.py", "name"). A colon of a Windows drive is not a separator."""
    home, colon, name = text.rpartition(":")
    home = home.rstrip(":")  # pytest's separator
    return (home, name) if colon and len(home) > 1 and not ("/" in name or "\\" in name) else (text, "")


def get_attribute(module: ModuleType, name: str, home: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in vars(module) if not n.startswith("_") and not isinstance(getattr(module, n), ModuleType)]
            near = closest(part, names)
            raise TargetError(
                f"{home} has no {name}", hint=f"did you mean {home}:{near}?" if near else f"it defines {', '.join(names) or 'nothing'}"
            )
        value = getattr(value, part)
    return value


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """The user's exceptions as TargetErrors with the line that raised. Ctrl-C passes."""
    try:
        yield
    except (TargetError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise failure(what, error) from error


def required_arguments(function: Any) -> list[str]:
    """Names of the arguments that a call must give. Empty where the signature cannot be read."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _dotted_name(path: Path) -> tuple[str, str]:
    """(module name, folder to import from): relative imports work when the file lies in a package."""
    parts, folder = [path.stem.replace(".", "_")], path.parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    name = ".".join(parts[:-1] if path.stem == "__init__" and len(parts) > 1 else parts)
    taken = sys.modules.get(name)
    if name in sys.stdlib_module_names or name in sys.builtin_module_names or (taken is not None and not _is_users(taken)):
        name = f"gradcheck_target_{path.stem}"
    return name, str(folder)


def _similar_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    near = closest(path.name, (p.name for p in folder.glob("*.py")))
    other = "name the Python file that builds the model: model.py, model.py:name, package.module:name"
    return f"did you mean {folder / near}?" if near else other


class TrainsWhenImported(TargetError):
    """It is a training script."""


class _Begins(BaseException):
    """Not an Exception, so that training code that catches those ends anyway."""


@contextmanager
def no_training(name: str) -> Iterator[None]:
    """Raises TrainsWhenImported when the code of a model file begins to train: calls backward(), or steps an optimizer."""
    original, begun = torch.autograd.backward, False

    def ends(*args: Any, **kwargs: Any) -> None:
        nonlocal begun
        begun = True
        raise _Begins

    step = register_optimizer_step_pre_hook(ends)
    torch.autograd.backward = ends
    try:
        yield
    except (_Begins, TargetError):
        if not begun:
            raise
    finally:
        torch.autograd.backward = original
        step.remove()
    if begun:
        hint = f"`gradcheck scan {name} --script` runs it as a training script"
        raise TrainsWhenImported(f"{name} trains when it is imported", hint=hint)
