"""Residual connections: in the block's own forward, in the loop that runs the blocks, or by a small class around them."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import Reader, original, spelled
from gradcheck.remedies.editing.nodes import Function, called, defined, dotted, every, forward_of
from gradcheck.remedies.editing.placing import in_helper, unpacking, wrap
from gradcheck.remedies.editing.statements import insert_definition
from gradcheck.types.fix import Fix

NAME = "Residual"


def add(p: Fix, context: Context) -> None:
    scale = number(p, "scale", 1.0)
    blocks = {x for x in p.layers if _keeps_width(context, x)}
    if not blocks:
        raise Unwritable("no block is named")
    if _in_forward(context, blocks, scale) or _in_loop(context, blocks, scale) or _around(context, blocks, scale):
        return
    raise Unwritable("the blocks are not run where a bypass could be written")


def _keeps_width(context: Context, name: str) -> bool:
    """A block gives as many features as it takes, as far as its weights tell. Others are left as they are, as on the copy."""
    inside = [x for x in context.measurement.parameters if x.name.startswith(f"{name}.") and len(x.shape) >= 2]
    matrices = [x for x in inside if context.measurement.layer(x.layer) is not None and context.layer(x.layer).kind in ("linear", "conv")]
    if not matrices or any(context.layer(x.layer).groups > 1 for x in (matrices[0], matrices[-1])):
        return True
    transposed = ("ConvTranspose", "Conv1D")
    first, last = matrices[0], matrices[-1]
    taken = first.shape[0 if context.layer(first.layer).type.startswith(transposed) else 1]
    given = last.shape[1 if context.layer(last.layer).type.startswith(transposed) else 0]
    return taken == given


def _factor(scale: float) -> str:
    return "" if abs(scale - 1) < 0.005 else f"{literal(scale)} * "


# ------------------------------------------------------------------- the block's own forward


def _in_forward(context: Context, blocks: set[str], scale: float) -> bool:
    """`return f(x)` of the blocks' class becomes `return x + f(x)`, where all its instances are blocks."""
    kinds = {context.layer(x).type for x in blocks}
    instances = {x.name for x in context.measurement.layers if x.type in kinds}
    if instances != blocks:
        return False
    methods = []
    for kind in kinds:
        found = next(((d, m) for d in context.all_drafts() if (m := _forward(d, kind)) is not None), None)
        if found is None:
            return False
        methods.append(found)
    for draft, method in methods:
        (returned,) = (n.value for n in every(method, ast.Return))
        assert returned is not None
        text = draft.source(returned)
        if isinstance(returned, (ast.IfExp, ast.Lambda)) or (_factor(scale) and isinstance(returned, ast.BinOp)):
            text = f"({text})"
        draft.replace(returned, f"{method.args.args[1].arg} + {_factor(scale)}{text}")
    return True


def _forward(draft: Draft, kind: str) -> Function | None:
    """The forward method of a class, when it takes one input, which it keeps, and returns once."""
    method = forward_of(draft, kind)
    if method is None or len(method.args.args) != 2:
        return None
    name, returns = method.args.args[1].arg, every(method, ast.Return)
    stored = any(n.id == name and isinstance(n.ctx, ast.Store) for n in every(method, ast.Name))
    simple = len(returns) == 1 and isinstance(returns[0].value, (ast.Call, ast.Name, ast.BinOp))
    return method if simple and not stored else None


# ------------------------------------------------------------------- the loop over the blocks


def _in_loop(context: Context, blocks: set[str], scale: float) -> bool:
    """`block(x)` in the loop over the blocks, where all that this expression runs are blocks."""
    for draft in context.all_drafts():
        reader = Reader(context, draft)
        found = [n for n in every(draft.tree, ast.Call) if _runs(n) and reader.layers(n.func) == blocks]
        if len(found) == 1 and any(isinstance(a, ast.For) for a in draft.ancestors(found[0])):
            call = found[0]
            text = f"{draft.source(call.args[0])} + {_factor(scale)}{draft.source(call)}"
            inside = isinstance(draft.parent(call), (ast.BinOp, ast.UnaryOp, ast.Attribute, ast.Subscript))
            draft.replace(call, f"({text})" if inside else text)
            return True
    return False


def _runs(call: ast.Call) -> bool:
    """block(x): a name called with one name."""
    return len(call.args) == 1 and not call.keywords and isinstance(call.func, ast.Name) and isinstance(call.args[0], ast.Name)


# ------------------------------------------------------------------------ a class around them


def _around(context: Context, blocks: set[str], scale: float) -> bool:
    """Wraps the expressions that make the blocks, as items of a Sequential, into `Residual(...)`."""
    _refuse_inside(context, blocks)
    todo = set(blocks)
    while todo:
        name = min(todo)
        found = _exact(context, name, blocks) or _item(context, name, blocks)
        if found is None:
            return False
        draft, node, made = found
        if called(node) != NAME:
            _define(context, draft, node, scale)
            wrap(draft, node, f"{NAME}(")
        todo -= made
    return True


KEPT = frozenset("train eval to parameters named_parameters apply state_dict modules named_modules requires_grad_ zero_grad half".split())


def _refuse_inside(context: Context, blocks: set[str]) -> None:
    """Raises Unwritable when other code looks into a block, which would be the wrapper then."""
    for draft in context.all_drafts():
        reader = Reader(context, draft)
        for node in ast.walk(draft.tree):
            if (
                isinstance(node, ast.Attribute)
                and node.attr not in KEPT
                and dotted(node.value) != "self"
                and reader.layers(node.value) & blocks
            ):
                raise draft.refusal(node, f"{draft.source(node)} looks into a block")
            inside = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and reader.layers(node.value) & blocks
            named = isinstance(node, ast.Constant) and node.value in blocks and in_helper(draft, node)
            if inside or named:
                raise Unwritable(f"{draft.path}:{getattr(node, 'lineno', 0)}: other code looks into a block")
        for loop in unpacking(draft):
            if reader.members(loop.iter) & blocks:
                raise draft.refusal(loop, "the loop looks into the blocks")


def _exact(context: Context, name: str, blocks: set[str]) -> tuple[Draft, ast.expr, set[str]] | None:
    """The expression that creates the block, where it makes blocks only."""
    try:
        place = context.site(name)
        draft, node = context.at(place)
    except Unwritable:
        return None
    made = set(context.made_at(place))
    return (draft, node, made) if made <= blocks and isinstance(node, ast.Call) else None


def _item(context: Context, name: str, blocks: set[str]) -> tuple[Draft, ast.expr, set[str]] | None:
    """The item of the Sequential that holds the block: a call, or the element of the one unpacked comprehension."""
    holder, _, index = name.rpartition(".")
    try:
        draft, call = context.call_at(context.site(holder))
    except Unwritable:
        return None
    if original(draft, dotted(call.func)) != "torch.nn.Sequential" or not index.isdigit():
        return None
    start = f"{holder}." if holder else ""
    numbers = {
        int(rest)
        for x in context.measurement.layers
        if x.name.startswith(start) and (rest := x.name[len(start) :].partition(".")[0]).isdigit()
    }
    stars = [i for i, a in enumerate(call.args) if isinstance(a, ast.Starred)]
    if len(stars) > 1:
        return None
    position, count = int(index), max(numbers) + 1
    behind = len(call.args) - 1 - stars[0] if stars else 0
    if not stars or position < stars[0]:
        return draft, call.args[position], {name}
    if position >= count - behind:
        return draft, call.args[position - count], {name}
    star = call.args[stars[0]]
    value = star.value if isinstance(star, ast.Starred) else None
    run = {f"{start}{i}" for i in range(stars[0], count - behind)}
    if isinstance(value, (ast.ListComp, ast.GeneratorExp)) and run <= blocks:
        return draft, value.elt, run
    return None


def _define(context: Context, draft: Draft, node: ast.AST, scale: float) -> None:
    """The class, once, before what uses it."""
    if defined(draft, NAME) is not None:
        return
    module, tensor = spelled(draft, "torch.nn.Module"), spelled(draft, "torch.Tensor")
    code = f'''
class {NAME}({module}):
    """Adds what a block gives to its input."""

    def __init__(self, block: {module}) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: {tensor}) -> {tensor}:
        return x + {_factor(scale)}self.block(x)
'''
    tops = [n for n in draft.tree.body if isinstance(n, (*Function.__args__, ast.ClassDef))]
    insert_definition(draft, tops[0] if tops else node, code)


WRITERS: dict[str, Writer] = {"add-residual": add}
