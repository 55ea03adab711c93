"""How a name of torch is spelled in a file: by what it imports already, or by an import that is added."""

import ast

from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.statements import insert_after, insert_before

# How a file that has none of these gets them.
_CUSTOMARY = {
    "torch": "import torch",
    "torch.nn": "from torch import nn",
    "torch.nn.functional": "from torch.nn import functional as F",
    "torch.optim": "from torch import optim",
}


def bound_names(tree: ast.Module) -> dict[str, str]:
    """Dotted name -> name in the file, for the imports at its top level."""
    found: dict[str, str] = {}
    for node in _top_level(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    found.setdefault(alias.name, alias.asname)
                else:
                    found.setdefault(alias.name.partition(".")[0], alias.name.partition(".")[0])
                    found.setdefault(alias.name, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found.setdefault(f"{node.module}.{alias.name}", alias.asname or alias.name)
    return found


def _top_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements of the module, with those of its `try` and `if` blocks."""
    found: list[ast.stmt] = []
    for node in tree.body:
        found.append(node)
        if isinstance(node, (ast.Try, ast.If)):
            found += node.body
    return found


def spelled(draft: Draft, name: str) -> str:
    """How a dotted name ("torch.nn.init.zeros_") is written in the file; adds an import when none leads there."""
    found = known(draft, name)
    if found is not None:
        return found
    package = next((p for p in sorted(_CUSTOMARY, key=len, reverse=True) if name == p or name.startswith(p + ".")), None)
    if package is None:
        raise ValueError(f"{name} is not a name of torch")
    statement = _CUSTOMARY[package]
    _add(draft, statement if statement.split()[-1] not in _used(draft) else _CUSTOMARY["torch"])
    spelling = known(draft, name)
    if spelling is None:
        raise Unwritable(f"{draft.path}: the name torch means something else there")
    return spelling


def _used(draft: Draft) -> set[str]:
    """Names that the file defines itself."""
    return {n.id for n in ast.walk(draft.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {
        n.name for n in ast.walk(draft.tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    }


def known(draft: Draft, name: str) -> str | None:
    """How the imports of the file spell a dotted name; None when none leads there."""
    bound = bound_names(draft.tree)
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        start = bound.get(".".join(parts[:count]))
        if start is not None:
            return ".".join([start, *parts[count:]])
    return None


def original(draft: Draft, spelling: str) -> str:
    """The dotted name behind a spelling: "torch.nn.functional.relu" for `F.relu`."""
    names = {local: name for name, local in bound_names(draft.tree).items()}
    head, _, rest = spelling.partition(".")
    return ".".join(filter(None, [names.get(head, head), rest]))


def _add(draft: Draft, statement: str) -> None:
    """Among the imports of torch, where an import sorter has it; else after the last import, or after the docstring."""
    body = draft.tree.body
    imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
    about = [n for n in imports if _sorting(n)[1].partition(".")[0] == "torch"]
    key = _sorting(ast.parse(statement).body[0])
    before = [n for n in about if _sorting(n) <= key]
    if before:
        insert_after(draft, before[-1], statement)
    elif about:
        insert_before(draft, about[0], statement)
    elif imports:
        insert_after(draft, imports[-1], statement)
    elif ast.get_docstring(draft.tree) is not None:
        insert_after(draft, body[0], f"\n{statement}")
    elif body:
        insert_before(draft, body[0], statement)


def _sorting(node: ast.stmt) -> tuple[bool, str]:
    module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name if isinstance(node, ast.Import) else ""
    return isinstance(node, ast.ImportFrom), module
