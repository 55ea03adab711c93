"""Is a Python file a training script, or a file that defines a model? Told from its text, without running it.

A script trains when it is run: its top level, or what stands under `if __name__ == "__main__":`, leads to a `backward()`, an
optimizer's `step()`, or a trainer. Training at the top level makes a script of every file, since importing it would train. Training
under the guard does so only when the file gives no target by the names that gradcheck looks for: a model, and data, a loss or
an optimizer beside it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

MODEL_NAMES = frozenset(("model", "build_model", "make_model", "get_model", "create_model"))
OTHER_NAMES = frozenset(
    "batch get_batch make_batch train_loader dataloader train_dataset batches loss_fn criterion compute_loss training_step "
    "optimizer make_optimizer configure_optimizers".split()
)
TRAINING_CALLS = frozenset(("backward", "step"))
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def is_script(path: str) -> bool:
    """False for what is no readable Python file, too: loading it says what is wrong."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    top, guarded = _parts(tree.body)
    own = {node.name: node for node in tree.body if isinstance(node, _Definition)}
    definitions = {**_imported(tree, Path(path).parent), **own}
    if _trains(top, definitions):
        return True
    names = _given(top) | own.keys()
    is_target = bool(names & MODEL_NAMES) and bool(names & OTHER_NAMES)
    return not is_target and _trains(guarded, definitions)


def _imported(tree: ast.Module, folder: Path) -> dict[str, _Definition]:
    """Functions and classes of the modules beside the file that it imports, under their own names."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    found: dict[str, _Definition] = {}
    for name in names:
        try:
            body = ast.parse((folder / (name.replace(".", "/") + ".py")).read_bytes()).body
        except (OSError, SyntaxError, ValueError):
            continue
        found |= {node.name: node for node in body if isinstance(node, _Definition)}
    return found


def _parts(body: Iterable[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Statements that run on import, and those that only run as a script."""
    top: list[ast.stmt] = []
    guarded: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If) and "__name__" in {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}:
            guarded += node.body
            top += node.orelse
        elif not isinstance(node, _Definition):
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


def _trains(statements: Iterable[ast.AST], definitions: dict[str, _Definition]) -> bool:
    """Whether running the statements leads to a training call, through the functions and classes of the file."""
    pending, seen = list(statements), set[str]()
    while pending:
        for name, is_method in _calls(pending.pop()):
            if (is_method and name in TRAINING_CALLS) or name.endswith("Trainer"):
                return True
            if name in definitions and name not in seen:
                seen.add(name)
                pending.append(definitions[name])
    return False


def _calls(node: ast.AST) -> Iterator[tuple[str, bool]]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            if isinstance(call.func, ast.Attribute):
                yield call.func.attr, True
            elif isinstance(call.func, ast.Name):
                yield call.func.id, False
