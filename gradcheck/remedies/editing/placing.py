"""Putting a new module after a layer: as the next item of a Sequential or list, or as an attribute with a call of its own."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gradcheck.remedies.editing.context import Context
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.names import Reader, original, spelled
from gradcheck.remedies.editing.nodes import (
    called,
    calls_in,
    class_of,
    defined,
    dotted,
    every,
    function_of,
    insert_after_item,
    own,
    scope_of,
    target_of,
)
from gradcheck.remedies.editing.statements import insert_after
from gradcheck.types.location import Location

HELPER = "apply_gradcheck_fixes"
PAIRS = ("zip", "enumerate", "named_children", "named_modules")  # they give pairs by themselves
NUMBERED = ("torch.nn.Sequential",)  # calls whose positional arguments run one after the other


@dataclass(frozen=True)
class New:
    """What is put after a layer. Both functions get the draft, so that they can spell torch's names, and the layer's creating call."""

    module: Callable[[Draft, ast.Call], str]  # "nn.LayerNorm(64)"
    word: str  # suffix of an attribute that holds it: "norm"
    function: Callable[[Draft, str], str] | None = None  # "torch.relu(x)" for "x", where a function does the same


def put_behind(context: Context, names: Sequence[str], new: New) -> None:
    """Raises Unwritable when one of the layers is created where there is no room for another."""
    wanted = set(names)
    renumber(context, [x for x in names if _becomes_item(context, x)])
    _refuse_reached(context, {x for x in names if not _becomes_item(context, x)})
    for place in context.sites(names):
        others = set(context.made_at(place)) - wanted
        if others:
            raise Unwritable(f"{place} makes {min(others)} too, which is to stay as it is")
        draft, call = context.call_at(place)
        ways = (_as_item, _as_name, _as_returned)
        if any(way(draft, call, new) for way in ways) or _as_attribute(draft, place, new):
            continue
        if not _as_list(context, draft, place, new, wanted):
            raise Unwritable(f"{place}: there is no room for a {new.word} behind the layer")


def in_sequence(draft: Draft, node: ast.AST) -> bool:
    """An item of `nn.Sequential(...)`, or of a list that is no ModuleList: its items run in order."""
    parent = draft.parent(node)
    if isinstance(parent, ast.Call) and node in parent.args:
        return original(draft, dotted(parent.func)) in NUMBERED
    if isinstance(parent, (ast.List, ast.Tuple)) and isinstance(parent.ctx, ast.Load):
        above = draft.parent(parent)
        if isinstance(above, ast.Starred):
            return in_sequence(draft, above)
        if isinstance(above, ast.comprehension):
            return _runs_through(draft, above)
        if isinstance(above, ast.AugAssign) or (isinstance(above, ast.Call) and called(above) == "extend"):
            return True
        if isinstance(above, ast.Return):
            return _returns_items(draft, above)
        if isinstance(above, (ast.Assign, ast.AnnAssign)) and isinstance(parent, ast.List):
            return _feeds_sequence(draft, above)
    return False


def _returns_items(draft: Draft, statement: ast.Return) -> bool:
    """The function's list is unpacked into a Sequential, or added to the items of one, wherever the file calls it."""
    function = function_of(draft, statement)
    if function is None:
        return False
    calls = calls_in(draft.tree, function.name)
    above = [draft.parent(call) for call in calls]
    adds = [isinstance(a, ast.AugAssign) or (isinstance(a, ast.Call) and called(a) == "extend") for a in above]
    return bool(calls) and all(add or (isinstance(a, ast.Starred) and in_sequence(draft, a)) for add, a in zip(adds, above, strict=True))


def _runs_through(draft: Draft, generator: ast.comprehension) -> bool:
    """`part for _ in range(n) for part in (...)`, unpacked into a Sequential."""
    whole, target = draft.parent(generator), generator.target
    if not isinstance(whole, (ast.ListComp, ast.GeneratorExp)) or whole.generators[-1] is not generator or generator.ifs:
        return False
    if not (isinstance(whole.elt, ast.Name) and isinstance(target, ast.Name) and whole.elt.id == target.id):
        return False
    above = draft.parent(whole)
    if isinstance(above, (ast.Assign, ast.AnnAssign)):
        return _feeds_sequence(draft, above)
    return isinstance(above, ast.Starred) and in_sequence(draft, above)


def _feeds_sequence(draft: Draft, statement: ast.Assign | ast.AnnAssign) -> bool:
    """The list that a statement makes is unpacked into a Sequential later, here or by the callers."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    if not isinstance(target, ast.Name):
        return False
    uses = [n for n in own(scope_of(draft, statement)) if isinstance(n, (ast.Starred, ast.Return)) and n.value is not None]
    named = [n for n in uses if isinstance(n.value, ast.Name) and n.value.id == target.id]
    return any(in_sequence(draft, n) if isinstance(n, ast.Starred) else _returns_items(draft, n) for n in named)


def _numbered(context: Context, name: str) -> bool:
    """It is an item of a Sequential, as far as the names tell."""
    holder = context.measurement.layer(name.rpartition(".")[0])
    return name.rpartition(".")[2].isdigit() and holder is not None and holder.type == "Sequential"


def _becomes_item(context: Context, name: str) -> bool:
    """The new module is an item of the container that holds the layer, by a number."""
    if not _numbered(context, name):
        return False
    draft, call = context.call_at(context.site(name))
    parent = draft.parent(call)
    if in_sequence(draft, call) or (isinstance(parent, ast.Call) and called(parent) == "append"):
        return True
    return bool(_items(draft, call))


def _refuse_reached(context: Context, wanted: set[str]) -> None:
    """Raises Unwritable when the generated function names a layer that may get another place."""
    for draft in context.all_drafts():
        function = defined(draft, HELPER)
        reader = Reader(context, draft)
        for node in ast.walk(function) if function is not None else ():
            if isinstance(node, ast.Subscript) and reader.layers(node) & wanted:
                raise draft.refusal(node, f"{HELPER} reaches into the layer")


def renumber(context: Context, names: Sequence[str]) -> None:
    """Numbers of items after new ones, in other code of the user's: `model[2].bias` is then `model[3].bias`.

    Raises Unwritable for code that takes a Sequential apart in any other way.
    """
    places: dict[str, list[int]] = {}
    for name in names:
        if _numbered(context, name):
            places.setdefault(name.rpartition(".")[0], []).append(int(name.rpartition(".")[2]))
    if not places:
        return
    later = replace(context, inserted={**context.inserted})
    for holder, indices in places.items():
        later.inserted[holder] = (*context.inserted.get(holder, ()), *indices)
    for draft in context.all_drafts():
        reader = Reader(context, draft)
        _refuse_unpacking(reader, set(places))
        draft.edit([edit for node in ast.walk(draft.tree) for edit in _renumbered(reader, later, node)])
    context.inserted = later.inserted


def _refuse_unpacking(reader: Reader, holders: set[str]) -> None:
    draft = reader.draft
    for loop in unpacking(draft):
        if reader.members(loop.iter) & holders:
            raise draft.refusal(loop, "the loop counts on the number of layers in each block")
    for node in every(draft.tree, ast.Subscript):
        if isinstance(node.slice, ast.Slice) and reader.owners(node.value) & holders:
            raise draft.refusal(node, f"{draft.source(node)} counts on the order of the layers")


def unpacking(draft: Draft) -> list[ast.For]:
    """Loops that take their items apart, where these are not pairs by themselves."""
    return [n for n in every(draft.tree, ast.For) if isinstance(n.target, ast.Tuple) and called(n.iter) not in PAIRS]


def _renumbered(reader: Reader, later: Context, node: ast.AST) -> list[Edit]:
    draft, context = reader.draft, reader.context
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
        index = node.slice.value
        owners = [x for x in reader.owners(node.value) if x in later.inserted]
        measured = {(x, context.number_measured(x, index)) for x in owners}
        numbers = {later.number_now(x, i) for x, i in measured if i is not None}
        return [Edit(*draft.span(node.slice), str(numbers.pop()))] if len(numbers) == 1 else []
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and in_helper(draft, node):
        name = context.name_measured(node.value)
        if name is not None and context.measurement.layer(name) is not None:
            return [Edit(*draft.span(node), f'"{later.name_now(name)}"')]
    return []


def in_helper(draft: Draft, node: ast.AST) -> bool:
    """It is a value in the generated function."""
    function = function_of(draft, node)
    return function is not None and function.name == HELPER and not isinstance(draft.parent(node), ast.Expr)


def _as_item(draft: Draft, call: ast.Call, new: New) -> bool:
    if in_sequence(draft, call):
        insert_after_item(draft, call, new.module(draft, call))
        return True
    parent = draft.parent(call)
    if isinstance(parent, ast.Call) and called(parent) == "append" and isinstance(draft.parent(parent), ast.Expr):
        text = draft.source(parent.func)
        insert_after(draft, parent, f"{text}({new.module(draft, call)})")
        return True
    return False


def _as_name(draft: Draft, call: ast.Call, new: New) -> bool:
    """`linear = nn.Linear(...)` that is an item of a Sequential later on."""
    items = _items(draft, call)
    if len(items) != 1:
        return False
    insert_after_item(draft, items[0], new.module(draft, call))
    return True


def _items(draft: Draft, call: ast.Call) -> list[ast.Name]:
    """Where the name of what a call makes is an item."""
    target = target_of(draft, call)
    if not isinstance(target, ast.Name):
        return []
    return [n for n in own(scope_of(draft, call)) if isinstance(n, ast.Name) and n.id == target.id and in_sequence(draft, n)]


def _as_returned(draft: Draft, call: ast.Call, new: New) -> bool:
    """`return nn.Linear(...)`, or `return linear` after it: a Sequential of both is returned."""
    function, name = function_of(draft, call), target_of(draft, call)
    returns = every(function, ast.Return) if function is not None else []
    if function is None or len(returns) != 1 or returns[0].value is None:
        return False
    if returns[0].value is not call and not (isinstance(name, ast.Name) and dotted(returns[0].value) == name.id):
        return False
    text, kind = new.module(draft, call), spelled(draft, "torch.nn.Sequential")
    start, end = draft.span(returns[0].value)
    edits = [Edit(start, start, f"{kind}("), Edit(end, end, f", {text})")]
    if function.returns is not None and dotted(function.returns) == dotted(call.func):
        edits.append(Edit(*draft.span(function.returns), kind))
    draft.edit(edits)
    return True


def _as_list(context: Context, draft: Draft, place: Location, new: New, wanted: set[str]) -> bool:
    """An item of `self.layers = nn.ModuleList([...])`: a second list, and `new(layer(x))` in the loop over both."""
    call = draft.at(place)
    holder = next((a for a in draft.ancestors(call) if isinstance(a, ast.Call) and called(a) == "ModuleList"), None)
    attribute = attribute_of(draft, holder) if holder is not None else None
    if holder is None or attribute is None:
        return False
    if any(dotted(t) == f"self.{attribute}_{new.word}" for n in every(draft.tree, ast.Assign) for t in n.targets):
        return True  # made with the first layer of the list
    loops = _loops(draft, attribute)
    made = [n for n in every(holder, ast.Call) if _layer_here(context, draft, n, wanted)]
    if len(loops) != 1 or not made:
        return False
    loop, run = loops[0]
    start, _ = draft.span(holder)
    text = draft.source(holder)
    if new.function is None:
        for one in sorted(made, key=lambda n: -draft.span(n)[0]):
            first, last = (offset - start for offset in draft.span(one))
            text = text[:first] + new.module(draft, one) + text[last:]
        target, word = draft.source(loop.target), new.word
        edits = [
            Edit(*draft.span(loop.target), f"{target}, {word}"),
            Edit(*draft.span(loop.iter), f"zip(self.{attribute}, self.{attribute}_{word}, strict=True)"),
            Edit(*draft.span(run), f"{word}({draft.source(run)})"),
        ]
        draft.edit(edits)
        insert_after(draft, draft.at(place), f"self.{attribute}_{word} = {text}")
    else:
        draft.replace(run, new.function(draft, draft.source(run)))
    return True


def _layer_here(context: Context, draft: Draft, node: ast.AST, wanted: set[str]) -> bool:
    span = draft.span(node)
    return any(context.layer(x).site is not None and draft.where(context.site(x)) == span for x in wanted)


def _loops(draft: Draft, attribute: str) -> list[tuple[ast.For, ast.Call]]:
    """Loops `for layer in self.layers:` with the only call `layer(x)` in them."""
    found = []
    for node in every(draft.tree, ast.For):
        if dotted(node.iter) == f"self.{attribute}" and isinstance(node.target, ast.Name):
            runs = [n for n in every(node, ast.Call) if dotted(n.func) == node.target.id]
            if len(runs) == 1:
                found.append((node, runs[0]))
    return found


def _as_attribute(draft: Draft, place: Location, new: New) -> bool:
    """`self.fc = nn.Linear(...)`: the new module is `self.fc_norm`, and `self.fc(x)` becomes `self.fc_norm(self.fc(x))`."""
    call = draft.at(place)
    attribute, holder = attribute_of(draft, call), class_of(draft, call)
    if attribute is None or holder is None or not isinstance(call, ast.Call):
        return False
    uses = _calls(draft, holder, attribute)
    if uses and new.function is None:
        insert_after(draft, call, f"self.{attribute}_{new.word} = {new.module(draft, call)}")
    for use in reversed(uses):  # the inner ones first
        text = draft.source(use)
        draft.replace(use, new.function(draft, text) if new.function else f"self.{attribute}_{new.word}({text})")
    return bool(uses)


def attribute_of(draft: Draft, call: ast.expr) -> str | None:
    """The attribute of self that holds what a call makes."""
    target = target_of(draft, call)
    held = dotted(target) if target is not None else ""
    return held.removeprefix("self.") if held.count(".") == 1 and held.startswith("self.") else None


def _calls(draft: Draft, holder: ast.ClassDef, attribute: str) -> list[ast.Call]:
    """`self.attribute(...)` in the class and in those of the file that are made of it."""
    family = {holder.name}
    for node in every(draft.tree, ast.ClassDef):
        if family & {dotted(base) for base in node.bases}:
            family.add(node.name)
    classes = [n for n in every(draft.tree, ast.ClassDef) if n.name in family]
    return [n for c in classes for n in every(c, ast.Call) if dotted(n.func) == f"self.{attribute}"]


def wrap(draft: Draft, node: ast.AST, before: str, after: str = ")") -> None:
    start, end = draft.span(node)
    draft.edit([Edit(start, start, before), Edit(end, end, after)])
