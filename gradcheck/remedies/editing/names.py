"""Which layers an expression of the source stands for, as far as the source and the creation sites tell; and how a name of torch is
spelled there, or imported.
"""

import ast
from collections.abc import Iterable

from gradcheck.remedies.editing.context import Context
from gradcheck.remedies.editing.draft import Draft, Span, Unwritable
from gradcheck.remedies.editing.nodes import ATOMS, Function, assigned, called, class_of, dotted, every, function_of, names_in
from gradcheck.remedies.editing.statements import insert_after, insert_before
from gradcheck.remedies.modules.rewriting import IN_TORCH

Layers = frozenset[str]


class Reader:
    """Reads expressions of one file. An unknown expression stands for no layer."""

    def __init__(self, context: Context, draft: Draft) -> None:
        self.context, self.draft = context, draft
        self._open: set[int] = set()  # expressions that are being read: recursion ends there
        self._spans: list[tuple[Span, str]] = []
        for layer in context.measurement.layers:
            place = layer.site
            if place is not None and ":" not in layer.name and context.owns(place, draft):
                span = draft.where(place)
                if span is not None:
                    self._spans.append((span, layer.name))

    def layers(self, node: ast.expr) -> Layers:
        """The layers that an expression is, or may be in turn."""
        if id(node) in self._open:
            return frozenset()  # defined by itself: x = x.children()
        self._open.add(id(node))
        try:
            return self._layers(node)
        finally:
            self._open.discard(id(node))

    def _layers(self, node: ast.expr) -> Layers:
        if isinstance(node, ast.Call):
            return self._made_at(node) or (self.members(node) if called(node) in ("children", "modules") else frozenset())
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            return self._element(node)
        return frozenset()

    def members(self, node: ast.expr) -> Layers:
        """The layers that iterating over an expression gives."""
        if isinstance(node, (ast.Tuple, ast.List)):
            parts = [self.members(e.value) if isinstance(e, ast.Starred) else self.layers(e) for e in node.elts]
            return frozenset().union(*parts)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if called(node) in ("modules", "named_modules"):
                return self._below(self.owners(node.func.value), direct=False)
            if called(node) in ("children", "named_children"):
                return self._below(self.owners(node.func.value), direct=True)
        if isinstance(node, ast.Call) and called(node) in ("enumerate", "list", "tuple", "reversed", "zip"):
            return frozenset().union(*(self.members(a) for a in node.args))
        found = self._within(node) or frozenset()
        below = self._below(self.layers(node), direct=True)
        return below or found

    # ---------------------------------------------------------------------------- parts

    def _made_at(self, node: ast.AST) -> Layers:
        span = self.draft.span(node)
        return frozenset(name for place, name in self._spans if place == span)

    def _within(self, node: ast.AST) -> Layers:
        start, end = self.draft.span(node)
        return frozenset(name for place, name in self._spans if start <= place[0] and place[1] <= end)

    def _name(self, node: ast.Name) -> Layers:
        for above in self.draft.ancestors(node):
            if isinstance(above, ast.For) and node.id in names_in(above.target) and all(n is not node for n in ast.walk(above.iter)):
                return self._filtered(node, self._unpacked(above, node.id))
        value = assigned(self.draft, node)
        if value is not None:
            return self.layers(value)
        if node.id == "self":
            return self.owners(node)
        function = function_of(self.draft, node)
        arguments = [a.arg for a in function.args.args] if function is not None else []
        if function is not None and node.id in arguments:
            return self._filtered(node, self._given(function, arguments.index(node.id)))
        return frozenset()

    def _given(self, function: Function, position: int) -> Layers:
        """What the calls of a function in the file, and `model.apply(function)`, give to one of its parameters."""
        found: Layers = frozenset()
        for call in every(self.draft.tree, ast.Call):
            if called(call) == function.name and len(call.args) > position:
                found |= self.layers(call.args[position])
            elif position == 0 and _applies(call, function.name) and isinstance(call.func, ast.Attribute):
                found |= self._below(self.owners(call.func.value), direct=False)
        return found

    def _unpacked(self, loop: ast.For, name: str) -> Layers:
        """The part of the items that a loop's variable stands for."""
        members = self.members(loop.iter)
        if isinstance(loop.target, ast.Name) or called(loop.iter) in ("enumerate", "named_modules", "named_children"):
            return members
        targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else []
        index = next((i for i, t in enumerate(targets) if isinstance(t, ast.Name) and t.id == name), None)
        if called(loop.iter) == "zip" and isinstance(loop.iter, ast.Call) and index is not None and index < len(loop.iter.args):
            return self.members(loop.iter.args[index])
        inside = self._below(members, direct=True) or members
        return frozenset(x for x in inside if x.rpartition(".")[2] == str(index)) or inside

    def _filtered(self, node: ast.Name, layers: Layers) -> Layers:
        """Without the layers that an `if isinstance(module, ...)` around the place excludes."""
        for above in self.draft.ancestors(node):
            tests = (
                above.test.values if isinstance(above, ast.If) and isinstance(above.test, ast.BoolOp) else [getattr(above, "test", None)]
            )
            test = next((t for t in tests if isinstance(above, ast.If) and t is not None and called(t) == "isinstance"), None)
            if isinstance(test, ast.Call) and len(test.args) == 2:
                wanted = {dotted(n).rpartition(".")[2] for n in ast.walk(test.args[1]) if isinstance(n, (ast.Name, ast.Attribute))}
                layers = frozenset(x for x in layers if self.context.layer(x).type in wanted)
        return layers

    def _attribute(self, node: ast.Attribute) -> Layers:
        """`self.fc`, `model.fc`: what the class gives that attribute."""
        owners = self.owners(node.value)
        names = frozenset(f"{o}.{node.attr}" if o else node.attr for o in owners)
        known = frozenset(x.name for x in self.context.measurement.layers)
        found = names & known
        if found:
            return found
        inside = frozenset(x for x in known for n in names if x.startswith(n + "."))  # a ModuleList is never called
        return names if inside else frozenset()

    def owners(self, node: ast.expr) -> Layers:
        """Modules that an expression stands for, as the owner of attributes: instances of the class around `self`, else by creation."""
        if isinstance(node, ast.Name) and node.id == "self":
            holder = class_of(self.draft, node)
            return frozenset(x.name for x in self.context.measurement.layers if holder is not None and x.type == holder.name)
        found = self.layers(node)
        if not found and isinstance(node, ast.Name) and node.id in ("model", "net", "module"):
            return frozenset({""})
        return found

    def _element(self, node: ast.Subscript) -> Layers:
        try:
            index = ast.literal_eval(node.slice)
        except ValueError:
            return self.members(node.value)  # any of them
        found = set()
        for owner in self.owners(node.value):
            start = f"{owner}." if owner else ""
            if isinstance(index, str):
                found.add(start + index)
            elif isinstance(index, int) and (number := self._measured(owner, index)) is not None:
                found.add(f"{start}{number}")
        return frozenset(found)

    def _measured(self, owner: str, index: int) -> int | None:
        """The number, as measured, of an item that the source numbers today."""
        count = len(self._children(owner))
        if index < 0:
            index += self.context.number_now(owner, count - 1) + 1 if count else 0
        number = self.context.number_measured(owner, index) if index >= 0 else None
        return number if number is not None and number < count else None

    def _children(self, owner: str) -> list[str]:
        """Direct numbered children, in order. The last one may be missing where it was never called."""
        start = f"{owner}." if owner else ""
        rests = {x.name[len(start) :].partition(".")[0] for x in self.context.measurement.layers if x.name.startswith(start)}
        numbers = sorted(int(r) for r in rests if r.isdigit())
        return [f"{start}{i}" for i in range(numbers[-1] + 1)] if numbers else []

    def _below(self, owners: Iterable[str], *, direct: bool) -> Layers:
        found = set()
        for owner in owners:
            start = f"{owner}." if owner else ""
            for layer in self.context.measurement.layers:
                rest = layer.name.removeprefix(start) if layer.name.startswith(start) else ""
                if rest and ":" not in rest:
                    found.add(start + rest.partition(".")[0] if direct else layer.name)
        return frozenset(found)


def _applies(call: ast.Call, name: str) -> bool:
    """`model.apply(name)`"""
    return called(call) == "apply" and len(call.args) == 1 and dotted(call.args[0]).rpartition(".")[2] == name


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


def written(draft: Draft, node: ast.AST) -> str:
    """The source of an expression of new nodes around nodes of the file: these keep their text, functions of torch their name there."""
    if draft.holds(node):
        return draft.source(node)
    if isinstance(node, ast.Call):
        return f"{written(draft, node.func)}({', '.join(written(draft, a) for a in (*node.args, *node.keywords))})"
    if isinstance(node, ast.BinOp):
        sign = ast.unparse(ast.BinOp(ast.Name(""), node.op, ast.Name("")))
        return _closed(draft, node.left) + sign + _closed(draft, node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return f"-({written(draft, node.operand)})"
    text = ast.unparse(node)
    if text.startswith(IN_TORCH) and text.count("(") == 1:
        return spelled(draft, f"torch.{text.removeprefix(IN_TORCH)}")
    if isinstance(node, ast.Attribute):
        return f"{_closed(draft, node.value)}.{node.attr}"
    return text.replace("e-0", "e-")


def _closed(draft: Draft, node: ast.expr) -> str:
    return written(draft, node) if isinstance(node, ATOMS) else f"({written(draft, node)})"


def _used(draft: Draft) -> set[str]:
    """Names that the file defines itself."""
    stored = {n.id for n in every(draft.tree, ast.Name) if isinstance(n.ctx, ast.Store)}
    return stored | {n.name for n in ast.walk(draft.tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


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
