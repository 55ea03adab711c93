"""Wiring: hidden modules registered, missing parameters trained, cut gradients let through, axes put right."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.document import lines_of
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.loop import following, owner_of
from gradcheck.remedies.editing.names import Reader, original, spelled
from gradcheck.remedies.editing.nodes import (
    argument,
    assigned,
    called,
    calls_in,
    class_of,
    dotted,
    every,
    in_place_of,
    names_in,
    scope_of,
    self_of,
    set_argument,
    statement_of,
)
from gradcheck.remedies.editing.placing import wrap
from gradcheck.remedies.editing.statements import indent_of, insert_after, line_start, remove_statement
from gradcheck.types.fix import Fix


def register(p: Fix, context: Context) -> None:
    """`self.layers = [...]` becomes `self.layers = nn.ModuleList([...])`; dictionaries and parameters alike."""
    places = {t.site for t in context.measurement.hidden if t.site is not None}
    if not places:
        raise Unwritable("it is not known where they are created")
    for place in sorted(places, key=str):
        draft, node = context.at(place)
        value = _held(draft, node)
        if isinstance(value, ast.Call):
            continue  # wrapped already, for another tensor of the same list
        parameters = all(t.owner == "Parameter" for t in context.measurement.hidden if t.site == place)
        word = "Parameter" if parameters else "Module"
        if isinstance(value, (ast.List, ast.ListComp, ast.Name)):
            kind = f"torch.nn.{word}List"
        elif isinstance(value, (ast.Dict, ast.DictComp)):
            kind = f"torch.nn.{word}Dict"
        else:
            raise Unwritable(f"{place}: it is not kept in a list or dictionary of self")
        wrap(draft, value, f"{spelled(draft, kind)}(")


def _held(draft: Draft, node: ast.expr) -> ast.expr:
    """The container that ends up in an attribute of self: the value of that assignment."""
    statement = statement_of(draft, node)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(_of_self(draft, t) for t in targets):
            return statement.value
    owner = _list_that_takes(draft, node)
    if owner.startswith(f"{self_of(draft, node)}."):
        return _only_value(draft, owner)
    for other in every(draft.tree, ast.Assign):  # layers = []; layers.append(...); self.layers = layers
        if dotted(other.value) == owner and any(_of_self(draft, t) for t in other.targets):
            return other.value
    raise draft.refusal(node, "it is not kept in a list or dictionary of self")


def _of_self(draft: Draft, target: ast.expr) -> bool:
    """Whether an assignment sets an attribute of the object whose method it stands in."""
    return dotted(target).startswith(f"{self_of(draft, target)}.")


def _list_that_takes(draft: Draft, node: ast.expr) -> str:
    """The list that a call of append gives the new module to, or that a statement makes of it."""
    for above in draft.ancestors(node):
        if isinstance(above, ast.Call) and called(above) in ("append", "extend") and isinstance(above.func, ast.Attribute):
            return dotted(above.func.value)
        if isinstance(above, ast.AugAssign):
            return dotted(above.target)
        if isinstance(above, ast.Assign):
            target = above.targets[0]
            return dotted(target.value if isinstance(target, ast.Subscript) else target)
    return ""


def _only_value(draft: Draft, owner: str) -> ast.expr:
    values = [n.value for n in every(draft.tree, ast.Assign) if any(dotted(t) == owner for t in n.targets)]
    values += [n.value for n in every(draft.tree, ast.AnnAssign) if dotted(n.target) == owner and n.value is not None]
    if len(values) != 1:
        raise Unwritable(f"{draft.path}: {owner} is set in several places")
    return values[0]


def train_all(p: Fix, context: Context) -> None:
    """The missing parameters join the list that the optimizer is given; a single module's make room for the model's."""
    draft, call = context.call_at(context.measurement.optimizer.site, "the optimizer")
    given: ast.expr | None = call.args[0] if call.args else argument(call, "params")
    if isinstance(given, ast.Name):
        given = assigned(draft, given) or given
    if isinstance(given, ast.List):
        _extend(draft, given, _missing(context))
        return
    if isinstance(given, ast.Call) and called(given) == "parameters" and isinstance(given.func, ast.Attribute):
        owner = given.func.value
        if isinstance(owner, ast.Attribute):
            draft.replace(owner, draft.source(owner.value))
            return
        if isinstance(owner, ast.Name) and (_later(draft, statement_of(draft, call), owner.id) or _instead(context, draft, call, owner)):
            return
    raise draft.refusal(call, "it is not plain how the optimizer gets its parameters")


def _later(draft: Draft, made: ast.stmt, model: str) -> bool:
    """An optimizer that is made before the last change of its model goes after that; False when there is no such change."""
    behind = following(draft, made)
    last = next((i for i in range(len(behind) - 1, -1, -1) if _changes(behind[i], model)), None)
    if last is None or not isinstance(made, ast.Assign):
        return False
    if names_in(*made.targets) & names_in(*behind[: last + 1]):
        raise draft.refusal(made, "the optimizer is used before the last change of the model")
    insert_after(draft, behind[last], draft.source(made))
    remove_statement(draft, made)
    return True


def _instead(context: Context, draft: Draft, call: ast.Call, owner: ast.Name) -> bool:
    """The parameters of the model in place of another module's, when the optimizer holds none of the model's."""
    root = context.measurement.layer("")
    if root is None or root.site is None or any(x.groups for x in context.measurement.parameters):
        return False
    home, node = context.at(root.site)
    made = statement_of(home, node)
    if home is not draft or not isinstance(made, ast.Assign) or made.value is not node or not isinstance(made.targets[0], ast.Name):
        return False
    scope, name = scope_of(draft, made), made.targets[0].id
    if name == owner.id or scope not in (scope_of(draft, call), draft.tree) or made.lineno >= call.lineno:
        return False
    draft.replace(owner, name)
    return True


def _changes(statement: ast.stmt, model: str) -> bool:
    """`model.head = ...`, `model[0] = ...`, `model.layers.append(...)`."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    places = [t.value for t in targets if isinstance(t, (ast.Attribute, ast.Subscript))]
    if isinstance(statement, ast.Expr) and called(statement.value) in ("append", "extend", "insert", "add_module", "register_module"):
        assert isinstance(statement.value, ast.Call)
        places += [statement.value.func.value] if isinstance(statement.value.func, ast.Attribute) else []
    return any(dotted(p).split(".")[0] == model for p in places)


def _missing(context: Context) -> list[str]:
    """Top-level modules, or parameters, of the model that no group holds."""
    absent = [x for x in context.measurement.parameters if x.trainable and not x.groups]
    held = {x.name.split(".")[0] for x in context.measurement.parameters if x.groups}
    names: dict[str, None] = {}
    for x in absent:
        top = x.name.split(".")[0]
        names[top if top not in held else x.layer or x.name] = None
    return list(names)


def _extend(draft: Draft, given: ast.List, names: list[str]) -> None:
    owners = (owner_of(c) for c in calls_in(given, "parameters") if isinstance(c.func, ast.Attribute))
    model = next((o.split(".")[0] + (".model" if o.startswith("self.model.") else "") for o in owners), None)
    if model is None or not names or not given.elts:
        raise draft.refusal(given, "it is not plain what the optimizer is given")
    grouped = isinstance(given.elts[-1], (ast.Dict, ast.Call))
    items = [_of_module(model, x) for x in names]
    texts = [f'{{"params": {x}}}' if grouped else f"*{x}" for x in items]
    end = draft.span(given.elts[-1])[1]
    draft.edit([Edit(end, end, "".join(f", {x}" for x in texts))])


def _of_module(model: str, name: str) -> str:
    text = model
    for part in name.split("."):
        text += f"[{part}]" if part.isdigit() else f".{part}"
    return f"{text}.parameters()"


def uncut(p: Fix, context: Context) -> None:
    """Takes `.detach()` or `.data` away; of `with torch.no_grad():` the block stays."""
    draft, node = context.at(p.location)
    if isinstance(node, ast.Attribute) and node.attr == "data":
        draft.replace(node, in_place_of(draft, node.value, node))
    elif isinstance(node, ast.Call) and called(node) in ("detach", "detach_") and isinstance(node.func, ast.Attribute):
        kept = node.args[0] if node.args else node.func.value  # torch.detach(x), x.detach()
        draft.replace(node, in_place_of(draft, kept, node))
    else:
        _without_block(draft, node)


def _without_block(draft: Draft, node: ast.AST) -> None:
    """The statements of `with torch.no_grad():` in place of the block."""
    block = next((a for a in draft.ancestors(node) if isinstance(a, ast.With) and _switches_off(a)), None)
    if block is None or len(block.items) != 1:
        raise Unwritable(f"{draft.path}: what cuts the gradient off is not of a form that can be taken away")
    strings = (n for n in ast.walk(block) if isinstance(n, (ast.Constant, ast.JoinedStr)) and n.end_lineno != n.lineno)
    if block.body[0].lineno == block.lineno or next(strings, None) is not None:
        raise draft.refusal(block, "the block cannot be moved to the left")
    start, end = draft.span(block.body[0])[0], draft.span(block)[1]
    line = line_start(draft.text, start)
    outer, inner = indent_of(draft, block), draft.text[line:start]
    lines = lines_of(draft.text[line:end])
    text = "".join(outer + x.removeprefix(inner) if x.startswith(inner) else x for x in lines)
    draft.edit([Edit(draft.span(block)[0], end, text.removeprefix(outer))])


def _switches_off(block: ast.With) -> bool:
    return any(called(i.context_expr) in ("no_grad", "inference_mode") for i in block.items)


def dimension(p: Fix, context: Context) -> None:
    """The axis of a softmax, by keyword or where it is given by position."""
    place = p.location or context.site(p.layers[0])
    draft, call = context.call_at(place)
    method = isinstance(call.func, ast.Attribute) and called(call) in ("softmax", "log_softmax") and not _of_torch(draft, call)
    module = called(call) in ("Softmax", "LogSoftmax", "Softmin")
    set_argument(draft, call, "dim", str(round(number(p, "dim"))), 0 if method or module else 1)


def _of_torch(draft: Draft, call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and original(draft, dotted(call.func.value)).startswith("torch")


def training_mode(p: Fix, context: Context) -> None:
    """`norm.eval()` and `norm.train(False)` on these layers: they follow the mode of the model."""
    done = False
    for draft in context.all_drafts():
        while (call := _put_to_sleep(context, draft, set(p.layers))) is not None:
            if class_of(draft, call) is None:
                raise draft.refusal(call, "it is not in a module of yours")
            assert isinstance(call.func, ast.Attribute)
            draft.replace(call, f"{draft.source(call.func.value)}.train(self.training)")
            done = True
    if not done:
        raise Unwritable("it is not written in your files what puts them into evaluation mode")


def _put_to_sleep(context: Context, draft: Draft, layers: set[str]) -> ast.Call | None:
    """The first call of `eval()` or `train(False)` on one of these layers."""
    for call in calls_in(draft.tree, "eval", "train"):
        switches = _is_false(call) if called(call) == "train" else not call.args
        if switches and isinstance(call.func, ast.Attribute) and Reader(context, draft).layers(call.func.value) & layers:
            return call
    return None


def _is_false(call: ast.Call) -> bool:
    given = argument(call, "mode", 0)
    return isinstance(given, ast.Constant) and given.value is False


def default_momentum(p: Fix, context: Context) -> None:
    for place in context.sites(p.layers):
        draft, call = context.call_at(place)
        set_argument(draft, call, "momentum", literal(number(p, "momentum")), 2)


def batch_first(p: Fix, context: Context) -> None:
    for place in context.sites(p.layers):
        draft, call = context.call_at(place)
        set_argument(draft, call, "batch_first", "True")


WRITERS: dict[str, Writer] = {
    "register-modules": register,
    "add-to-optimizer": train_all,
    "remove-detach": uncut,
    "fix-softmax-dimension": dimension,
    "other-axis": dimension,
    "batch-first": batch_first,
    "training-mode": training_mode,
    "default-momentum": default_momentum,
}
