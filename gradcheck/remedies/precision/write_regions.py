"""Autocast to another type of numbers."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.imports import original, spelled
from gradcheck.remedies.editing.nodes import assigned, dotted, set_argument
from gradcheck.remedies.precision.regions import given_dtype, to_half
from gradcheck.types.fix import Fix

HALF = ("torch.float16", "torch.half")


def bfloat16(p: Fix, context: Context) -> None:
    """`dtype=torch.float16` of every autocast becomes `dtype=torch.bfloat16`; a type that has a name, where that is defined."""
    done = False
    for draft in context.all_drafts():
        while (call := next((n for n in ast.walk(draft.tree) if isinstance(n, ast.Call) and _in_half(draft, n)), None)) is not None:
            _change(draft, call)
            done = True
    if not done:
        raise Unwritable("no autocast to float16 is written in your files")


def _in_half(draft: Draft, call: ast.Call) -> bool:
    dtype = given_dtype(call)
    return to_half(call) and (dtype is None or original(draft, dotted(_defined(draft, dtype))) in HALF)


def _defined(draft: Draft, dtype: ast.expr) -> ast.expr:
    """What a name stands for."""
    return (assigned(draft, dtype) if isinstance(dtype, ast.Name) else None) or dtype


def _change(draft: Draft, call: ast.Call) -> None:
    new, dtype = spelled(draft, "torch.bfloat16"), given_dtype(call)
    if dtype is None:
        set_argument(draft, call, "dtype", new)
        return
    reads = [n for n in ast.walk(draft.tree) if isinstance(n, ast.Name) and n.id == dotted(dtype) and isinstance(n.ctx, ast.Load)]
    draft.replace(_defined(draft, dtype) if len(reads) == 1 else dtype, new)


WRITERS: dict[str, Writer] = {"bfloat16": bfloat16}
