"""Code that lets places see later ones: attention without its causal mask, and heads that are merged without transposing them back."""

from __future__ import annotations

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Unwritable
from gradcheck.remedies.editing.nodes import argument, called, set_argument
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


WRITERS: dict[str, Writer] = {"causal-attention": attention, "merge-heads": merge}
