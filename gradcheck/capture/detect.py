"""Whether a Python file is a training script or defines a model, told from its text without running it.

A script trains when it is run: its top level, or what stands under `if __name__ == "__main__":`, leads to a `backward()`, an
optimizer's `step()`, a trainer, or a call of a library that trains. A file that trains at its top level is always a script, since importing
it would train. A file that trains under the guard is not, if it defines a whole target under the names that gradcheck looks for: a model,
its loss and its optimizer. If it defines only a part of one, the script's own loss and optimizer are better than guessed ones. A file that
defines no model and does something when it is run is a script, too.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MODEL_NAMES = frozenset(("model", "build_model", "make_model", "get_model", "create_model"))
DATA_NAMES = frozenset("batch get_batch make_batch train_loader dataloader train_dataset batches".split())
LOSS_NAMES = frozenset(("loss_fn", "criterion", "compute_loss", "training_step"))
OPTIMIZER_NAMES = frozenset(("optimizer", "make_optimizer", "configure_optimizers"))
TRAINING_CALLS = frozenset(("backward", "manual_backward", "step", "fit_one_cycle", "fine_tune"))  # methods that do nothing else
_ALONE = frozenset("fit train learn fit_one_cycle fine_tune".split())  # one such call is a training
TRAINERS = ("Trainer", "LightningCLI")  # how the names of classes that train end
# Methods that train where the object is of a library for training; elsewhere they do many things.
LIBRARY_CALLS = frozenset(("fit", "train", "learn", "run"))
TRAINED = frozenset("model net network learn learner trainer agent algo estimator engine clf regressor".split())  # names of such objects
_VERBS = ("train", "fit", "finetune", "cli_main")  # how functions of such libraries begin
# Packages whose `fit` and `run` train no net, beside those of the standard library.
OTHER_LIBRARIES = frozenset(
    "sklearn numpy pandas scipy matplotlib PIL tqdm torch torchvision torchaudio wandb datasets tokenizers xgboost lightgbm umap".split()
)
_PREPARES = ("Scaler", "Encoder", "Imputer", "Vectorizer", "Binarizer", "Discretizer", "PCA", "Tokenizer")  # their `fit` looks at data
# Bases of classes that are not modules.
_NO_MODULES = frozenset(
    "object Dataset IterableDataset Sampler Callback LightningDataModule ABC Enum NamedTuple TypedDict Protocol".split()
)
_AT_ONCE = ("__init__", "__post_init__", "__call__", "__enter__", "__iter__")  # methods that run without being named
_MOST_FILES = 40  # of the modules beside a file that are looked into

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def is_script(path: str) -> bool:
    """Also False for anything that is not a readable Python file: loading it says what is wrong."""
    file = _read(Path(path))
    if file is None:
        return False
    top, guarded = _parts(file.body)
    own = {node.name: node for node in file.body if isinstance(node, Definition)}
    code = _Code(_Definitions(file, Path(path).parent), _packages(file))
    if code.trains(top):
        return True
    names = _given(top) | own.keys()
    offers_model = bool(names & MODEL_NAMES)
    if code.trains(guarded, after=top):
        return not (offers_model and names & LOSS_NAMES and names & OPTIMIZER_NAMES)
    return not offers_model and not any(map(_may_be_module, own.values())) and any(map(_acts, [*top, *guarded]))


def scripts_in(folder: Path) -> list[Path]:
    """The files of a folder that train when they are run; those of tests, and what comes after the first files, are left out."""
    files = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith(("test_", "conftest", "setup."))]
    return [path for path in files[:_MOST_FILES] if _trains_when_run(path)]


def trains_further(statement: ast.stmt, after: Sequence[ast.stmt], file: ast.Module, folder: Path, home: ast.ClassDef | None) -> bool:
    """Narrower than `is_script`: environments take steps, too, and pictures of what a net looks at are made by backward passes.

    `after`: statements that run before; `home`: the class whose method all of them stand in.
    """
    names = set(_Code(_Definitions(file, folder), _packages(file)).training_calls([statement], after, home))
    return {"step", "backward"} <= names or not names.isdisjoint(_ALONE)


def _trains_when_run(path: Path) -> bool:
    """Narrower than `is_script`: what does other things when it is run does not train. False for what is not a readable Python file."""
    file = _read(path)
    if file is None:
        return False
    top, guarded = _parts(file.body)
    code = _Code(_Definitions(file, path.parent), _packages(file))
    return code.trains(top) or code.trains(guarded, after=top)


def _read(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


class _Definitions:
    """Functions and classes of a file, and of the modules beside it that it imports, under their own names; read when they are needed."""

    def __init__(self, tree: ast.Module, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Definition] = {}
        self.registered: dict[str, list[Definition]] = {}  # by decorators of an object: commands of an app, handlers of an engine
        self._places: dict[str, list[Path]] = {}  # imported name -> files that may define it
        self._read: set[Path] = set()
        self._add(tree, folder)

    def get(self, name: str) -> Definition | None:
        if name not in self.known:
            for path in self._places.pop(name, ()):
                tree = _read(path) if path not in self._read and len(self._read) < _MOST_FILES else None
                self._read.add(path)
                if tree is not None:
                    self._add(tree, path.parent)
        return self.known.get(name)

    def _add(self, tree: ast.Module, home: Path) -> None:
        own = [node for node in tree.body if isinstance(node, Definition)]
        self.known = {node.name: node for node in own} | self.known
        for node in own:
            for root in {_root(decorator) for decorator in node.decorator_list} - _packages(tree).keys():
                self.registered.setdefault(root, []).append(node)
        for name, paths in _modules(tree, home, self.folder):
            self._places.setdefault(name, []).extend(paths)
        self.get("*")


def _modules(tree: ast.Module, home: Path, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Imported names, and the files that they may mean: seen from the module's own package, or from the folder of the script."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname or alias.name).partition(".")[0], _files(folder, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = [home, *home.parents][min(node.level - 1, len(home.parents))] if node.level else folder
            for alias in node.names:
                inner = f"{node.module}.{alias.name}" if node.module else alias.name
                yield alias.asname or alias.name, _files(base, inner) + _files(base, node.module or "")


def _files(base: Path, name: str) -> list[Path]:
    place = base / name.replace(".", "/")
    return [p for p in (place.with_name(f"{place.name}.py"), place / "__init__.py") if p.is_file()] if name else []


def _packages(tree: ast.Module) -> dict[str, str]:
    """Imported name -> the package that it comes from."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(a.asname or a.name).partition(".")[0]: a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {a.asname or a.name: node.module.partition(".")[0] for a in node.names}
    return found


def _parts(body: Iterable[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Statements that run on import, and those that only run as a script."""
    top: list[ast.stmt] = []
    guarded: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If) and "__name__" in {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}:
            guarded += node.body
            top += node.orelse
        elif not isinstance(node, Definition):
            top.append(node)
    return top, guarded


def _given(body: Iterable[ast.stmt]) -> set[str]:
    """Names that top-level statements give a value, or import."""
    names: set[str] = set()
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _may_be_module(node: Definition) -> bool:
    return isinstance(node, ast.ClassDef) and any(_last_name(base) not in _NO_MODULES for base in node.bases)


def _acts(statement: ast.stmt) -> bool:
    """Whether it does more than define, import and compute."""
    return not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)) and any(
        isinstance(node, ast.Call) for node in ast.walk(statement)
    )


@dataclass
class _Code:
    """What can be reached from a file's statements, through the functions and classes that they name."""

    definitions: _Definitions
    packages: dict[str, str]
    _classes: list[ast.ClassDef] = field(default_factory=list)  # that were reached: their methods run when they are called
    _called: set[str] = field(default_factory=set)  # names of methods
    _made_from: dict[str, ast.Call] = field(default_factory=dict)  # variable -> the call that made it

    def trains(self, statements: Iterable[ast.AST], after: Iterable[ast.AST] = ()) -> bool:
        """`after`: statements that run before them."""
        return any(True for _ in self.training_calls(statements, after))

    def training_calls(
        self, statements: Iterable[ast.AST], after: Iterable[ast.AST] = (), home: ast.ClassDef | None = None
    ) -> Iterator[str]:
        """The last names of the calls that train."""
        self._classes, self._called, self._made_from = [home] if home is not None else [], set(), {}
        for node in (n for statement in after for n in ast.walk(statement)):
            self._note_made(node)
        made = (self.definitions.get(_last_name(call.func)) for call in self._made_from.values())
        self._classes += [c for c in made if isinstance(c, ast.ClassDef)]
        pending, seen = list(statements), set[str]()
        calls: list[ast.Call] = []
        while pending:
            for node in ast.walk(pending.pop()):
                self._note_made(node)
                if isinstance(node, ast.Call):
                    if self._plainly(node):
                        yield _last_name(node.func)
                    calls.append(node)
                    pending += self._methods_called(node)
                for name in _referred(node):
                    found = self.definitions.get(name)
                    if found is not None and name not in seen:
                        seen.add(name)
                        pending += self._entered(found)
                    pending += self.definitions.registered.pop(name, ())
        yield from (_last_name(call.func) for call in calls if self._by_library(call))

    def _note_made(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            self._made_from |= {t.id: node.value for t in node.targets if isinstance(t, ast.Name)}

    def _entered(self, definition: Definition) -> list[ast.AST]:
        if not isinstance(definition, ast.ClassDef):
            return [definition]
        self._classes.append(definition)
        return [*definition.bases, *(m for m in _methods(definition) if m.name in _AT_ONCE or m.name in self._called)]

    def _methods_called(self, call: ast.Call) -> list[ast.AST]:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else None
        if name is None or name in self._called:
            return []
        self._called.add(name)
        return [m for c in self._classes for m in _methods(c) if m.name == name]

    def _plainly(self, call: ast.Call) -> bool:
        """A call that is training, whatever the object."""
        if isinstance(call.func, ast.Attribute) and call.func.attr in TRAINING_CALLS:
            return True
        name = _last_name(call.func)
        made = self.definitions.get(name)
        return name.endswith(TRAINERS) or (isinstance(made, ast.ClassDef) and any(_last_name(b).endswith(TRAINERS) for b in made.bases))

    def _by_library(self, call: ast.Call) -> bool:
        """A call that trains because of the library that it belongs to."""
        name = _last_name(call.func)
        if isinstance(call.func, ast.Name):
            return name.startswith(_VERBS) and self.definitions.get(name) is None and self._trains_nets(self.packages.get(name))
        if not isinstance(call.func, ast.Attribute) or name not in LIBRARY_CALLS or _is_mode(call):
            return False
        home = call.func.value
        made = home if isinstance(home, ast.Call) else self._made_from.get(_root(home))
        maker = made.func if made is not None else None
        if maker is not None and _last_name(maker).endswith(_PREPARES):
            return False
        if maker is None:
            package = self.packages.get(_root(home))
            return _root(home) in TRAINED if package is None else name != "run" and self._trains_nets(package)
        if self.definitions.get(_last_name(maker)) is not None:  # a class of the user's: its methods have been looked into
            return False
        package = self.packages.get(_root(maker))
        return _root(home) in TRAINED if package is None else self._trains_nets(package) or self._holds_net(home)

    def _holds_net(self, made: ast.expr) -> bool:
        """Whether an object was made with the help of a library that trains nets: a net in a pipeline, or in a search over its settings."""
        pending: list[ast.expr] = [made]
        seen: set[str] = set()
        while pending:
            for node in ast.walk(pending.pop()):
                if isinstance(node, ast.Call) and self._trains_nets(self.packages.get(_root(node.func))):
                    return True
                if isinstance(node, ast.Name) and node.id not in seen:
                    seen.add(node.id)
                    pending += [self._made_from[node.id]] if node.id in self._made_from else []
        return False

    def _trains_nets(self, package: str | None) -> bool:
        return package is not None and package not in OTHER_LIBRARIES and package not in sys.stdlib_module_names


def _methods(node: ast.ClassDef) -> Iterator[Function]:
    return (m for m in node.body if isinstance(m, Function))


def _referred(node: ast.AST) -> list[str]:
    """The names that a node refers to: a variable, called or handed on, and an attribute where it is called."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return [node.id]
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return []
    return [_root(node.func), *([] if _is_mode(node) else [node.func.attr])]


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _root(node: ast.expr) -> str:
    """The variable that an expression begins with."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_mode(call: ast.Call) -> bool:
    """`model.train()` sets a mode; a trainer's `train()` trains."""
    if _last_name(call.func) != "train" or call.keywords or len(call.args) > 1:
        return False
    flag = not call.args or (isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, bool))
    home = _last_name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    return flag and not home.lower().endswith(("trainer", "learner", "runner", "algo"))
