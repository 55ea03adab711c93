"""What is predicted from what: labels shifted twice, or not at all, code that lets places see later ones; and the scale of adapters."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.nodes import argument, called, closed, set_argument
from gradcheck.types.fix import Fix


def attention(p: Fix, context: Context) -> None:
    """`F.scaled_dot_product_attention(q, k, v)` gets its `is_causal=True`."""
    draft, call = context.call_at(p.location)
    if called(call) != "scaled_dot_product_attention":
        raise Unwritable(f"{draft.path}:{call.lineno}: it is not written there how the attention is called")
    if argument(call, "attn_mask", 3) is not None:
        raise Unwritable(f"{draft.path}:{call.lineno}: it has a mask, which takes no is_causal beside it")
    set_argument(draft, call, "is_causal", "True", 5)


def merge(p: Fix, context: Context) -> None:
    """`y.view(b, t, d)` of [b, heads, t, size] becomes `y.transpose(1, 2).reshape(b, t, d)`."""
    draft, call = context.call_at(p.location)
    if not isinstance(call.func, ast.Attribute) or called(call) not in ("view", "reshape"):
        raise Unwritable(f"{draft.path}:{call.lineno}: it is not written there how the heads are merged")
    arguments = ", ".join(draft.source(a) for a in call.args)
    if call.keywords:
        raise Unwritable(f"{draft.path}:{call.lineno}: the shape is not given in plain arguments")
    draft.replace(call, f"{draft.source(call.func.value)}.transpose(1, 2).reshape({arguments})")


FLATTENING = ("flatten", "view", "reshape", "transpose", "permute", "contiguous", "float", "long")
CUT, SHIFTED = "[:, :-1]", "[:, 1:]"


def shift(p: Fix, context: Context) -> None:
    """`cross_entropy(logits.view(-1, V), y.view(-1))` compares `logits[:, :-1]` with `y[:, 1:]`, or no longer does where it did."""
    draft, call = context.call_at(p.location)
    streams = context.measurement.sequence.streams if context.measurement.sequence is not None else ()
    ahead = next((s.ahead for s in streams if p.location in (s.loss_site, s.read_site)), None)
    scores, target = argument(call, "input", 0), argument(call, "target", 1)
    if called(call) not in ("cross_entropy", "nll_loss") or scores is None or target is None or ahead is None:
        raise Unwritable(f"{draft.path}:{call.lineno}: the loss is no plain call of cross_entropy there")
    ends = [(_end(scores), CUT), (_end(target), SHIFTED)]
    sliced = [draft.source(end).endswith(cut) for end, cut in ends]
    if ahead > 1 and all(sliced):
        texts = [draft.source(end).removesuffix(cut) for end, cut in ends]
    elif ahead == 0 and not any(sliced):
        texts = [f"{closed(draft, end)}{cut}" for end, cut in ends]
    else:
        raise Unwritable(f"{draft.path}:{call.lineno}: it is not written there where the labels are shifted")
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


def stabilise(p: Fix, context: Context) -> None:
    """`LoraConfig(r=128, ...)` gets its `use_rslora=True`."""
    calls = ((draft, node) for draft in context.all_drafts() for node in ast.walk(draft.tree) if isinstance(node, ast.Call))
    found = [(draft, call) for draft, call in calls if called(call) == "LoraConfig"]
    if len(found) != 1:
        raise Unwritable(f"{len(found)} calls of LoraConfig are in your files: the scale is computed where the adapters are made")
    set_argument(*found[0], "use_rslora", "True")


WRITERS: dict[str, Writer] = {
    "shift-labels": shift,
    "rank-stabilised-scale": stabilise,
    "causal-attention": attention,
    "merge-heads": merge,
}
