"""What is predicted from what: labels misaligned or all masked out, attention and heads that see later positions; the scale of adapters."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.nodes import argument, assigned, called, closed, is_literal, remove_argument, set_argument
from gradcheck.remedies.loop.write_once import NUMBERS
from gradcheck.types.fix import Fix


def attention(p: Fix, context: Context) -> None:
    """`F.scaled_dot_product_attention(q, k, v)` gets its `is_causal=True`."""
    draft, call = context.call_at(p.location)
    if called(call) != "scaled_dot_product_attention":
        raise draft.refusal(call, "it is not written there how the attention is called")
    mask = argument(call, "attn_mask", 3)
    if mask is not None and not (isinstance(mask, ast.Constant) and mask.value is None):
        raise draft.refusal(call, "it has a mask, which takes no is_causal beside it")
    set_argument(draft, call, "is_causal", "True", 5)


def merge(p: Fix, context: Context) -> None:
    """`y.view(b, t, d)` of [b, heads, t, size] becomes `y.transpose(1, 2).reshape(b, t, d)`."""
    draft, call = context.call_at(p.location)
    if not isinstance(call.func, ast.Attribute) or called(call) not in ("view", "reshape"):
        raise draft.refusal(call, "it is not written there how the heads are merged")
    arguments = ", ".join(draft.source(a) for a in call.args)
    if call.keywords:
        raise draft.refusal(call, "the shape is not given in plain arguments")
    draft.replace(call, f"{draft.source(call.func.value)}.transpose(1, 2).reshape({arguments})")


FLATTENING = ("flatten", "view", "reshape", "transpose", "permute", "contiguous", "float", "long")
CUT, SHIFTED = "[:, :-1]", "[:, 1:]"


def shift(p: Fix, context: Context) -> None:
    """`cross_entropy(logits.view(-1, V), y.view(-1))`, or a criterion called so, compares `logits[:, :-1]` with `y[:, 1:]`, or no longer
    does where it did."""
    draft, call = context.call_at(p.location)
    streams = context.measurement.sequence.streams if context.measurement.sequence is not None else ()
    ahead = next((s.ahead for s in streams if p.location in (s.loss_site, s.read_site)), None)
    scores, target = argument(call, "input", 0), argument(call, "target", 1)
    if scores is None or target is None or ahead is None or called(call) in NUMBERS:
        raise draft.refusal(call, "the loss is no plain call of cross_entropy there")
    ends = [(_end(scores), CUT), (_end(target), SHIFTED)]
    sliced = [draft.source(end).endswith(cut) for end, cut in ends]
    if ahead > 1 and all(sliced):
        texts = [draft.source(end).removesuffix(cut) for end, cut in ends]
    elif ahead == 0 and not any(sliced):
        texts = [f"{closed(draft, end)}{cut}" for end, cut in ends]
    else:
        raise draft.refusal(call, "it is not written there where the labels are shifted")
    wholes = zip((scores, target), ends, texts, strict=True)
    draft.edit([Edit(*draft.span(whole), _reshaped(draft, whole, end, text)) for whole, (end, _), text in wholes])


def _end(node: ast.expr) -> ast.expr:
    """What is flattened: `logits` of `logits.transpose(1, 2).reshape(-1, V)`."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FLATTENING:
        node = node.func.value
    return node


def _reshaped(draft: Draft, whole: ast.expr, end: ast.expr, text: str) -> str:
    """The same expression around other numbers, which lie apart in memory: `view` becomes `reshape`."""
    return text + draft.source(whole).removeprefix(draft.source(end)).replace(".view(", ".reshape(")


def supervise(p: Fix, context: Context) -> None:
    """Where targets are replaced by what the loss ignores, the others are: `y.masked_fill(pad, -100)` gets `~pad`; `[-100] * len(ids)`
    becomes `list(ids)`. There must be one such place. Where there is none, `ignore_index` is a class of the data, and goes."""
    seen = context.measurement.sequence.supervision if context.measurement.sequence is not None else ()
    given = next((s for s in seen if s.site == p.location), None)
    if given is None or (not given.empty and given.ignore_index < 0):
        raise Unwritable("batches have targets: which of the sequences are cut off is not written in the code")
    ignored, nodes = given.ignore_index, [(d, n) for d in context.all_drafts() for n in ast.walk(d.tree)]
    found = [e for d, n in nodes if (e := _unmasked(d, n, ignored)) is not None]
    ignoring = [(d, n) for d, n in nodes if isinstance(n, ast.Call) and _is(d, argument(n, "ignore_index"), ignored)]
    if ignored >= 0 and not found and len(ignoring) == 1:
        remove_argument(*ignoring[0], "ignore_index")
        return
    if len(found) != 1:
        raise Unwritable(f"{len(found)} places of your files make targets {ignored}: which of them masks too much is not written there")
    draft, edits = found[0]
    draft.edit(edits)


def _unmasked(draft: Draft, node: ast.AST, ignored: int) -> tuple[Draft, list[Edit]] | None:
    """What turns a mask round that takes targets out."""

    def fills(value: ast.expr | None) -> bool:
        return _is(draft, value, ignored)

    def swapped(one: ast.expr, other: ast.expr) -> tuple[Draft, list[Edit]]:
        texts = draft.source(other), draft.source(one)
        return draft, [Edit(*draft.span(place), text) for place, text in zip((one, other), texts, strict=True)]

    mask: ast.expr | None = None
    if isinstance(node, ast.Call) and called(node) in ("masked_fill", "masked_fill_") and fills(argument(node, "value", 1)):
        mask = argument(node, "mask", 0)
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) and fills(node.value):
        mask = node.targets[0].slice if not isinstance(node.targets[0].slice, (ast.Slice, ast.Tuple, ast.Constant)) else None
    elif isinstance(node, ast.Call) and called(node) == "where" and len(node.args) == 3 and any(map(fills, node.args[1:])):
        return swapped(node.args[1], node.args[2])
    elif isinstance(node, ast.IfExp) and (fills(node.body) or fills(node.orelse)):
        return swapped(node.body, node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.List) and len(node.left.elts) == 1:
        length = node.right
        if fills(node.left.elts[0]) and called(length) == "len" and not isinstance(draft.parent(node), ast.BinOp):
            assert isinstance(length, ast.Call)
            return draft, [Edit(*draft.span(node), f"list({draft.source(length.args[0])})")]
    return (draft, [Edit(*draft.span(mask), _turned(draft, mask))]) if mask is not None else None


def _is(draft: Draft, value: ast.expr | None, number: int) -> bool:
    value = assigned(draft, value) if isinstance(value, ast.Name) else value
    return value is not None and is_literal(value) and ast.literal_eval(value) == number


def _turned(draft: Draft, mask: ast.expr) -> str:
    if isinstance(mask, ast.UnaryOp) and isinstance(mask.op, ast.Invert):
        return draft.source(mask.operand)
    opposite = {ast.Eq: "!=", ast.NotEq: "==", ast.Lt: ">=", ast.GtE: "<", ast.Gt: "<=", ast.LtE: ">"}
    if isinstance(mask, ast.Compare) and len(mask.ops) == 1 and type(mask.ops[0]) in opposite:
        return f"{draft.source(mask.left)} {opposite[type(mask.ops[0])]} {draft.source(mask.comparators[0])}"
    return f"~{closed(draft, mask)}"


def stabilise(p: Fix, context: Context) -> None:
    """`LoraConfig(r=128, ...)` gets its `use_rslora=True`."""
    found = list(context.calls("LoraConfig"))
    if len(found) != 1:
        raise Unwritable(f"{len(found)} calls of LoraConfig are in your files: the scale is computed where the adapters are made")
    set_argument(*found[0], "use_rslora", "True")


WRITERS: dict[str, Writer] = {
    "shift-labels": shift,
    "supervise-targets": supervise,
    "rank-stabilised-scale": stabilise,
    "causal-attention": attention,
    "merge-heads": merge,
}
