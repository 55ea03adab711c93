"""Normalization before each branch: norm_first=True in torch's blocks, x + f(norm(x)) in those of the user."""

import ast
from collections.abc import Sequence
from typing import NamedTuple

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.imports import spelled
from gradcheck.remedies.editing.nodes import argument, called, set_argument, statement_of
from gradcheck.remedies.editing.statements import insert_before
from gradcheck.types.fix import Fix

NAME = "normed"  # of a normalised input that a branch uses several times


class PostNorm(NamedTuple):
    """`self.norm(x + f(x))`."""

    call: ast.Call
    bypass: ast.Name
    branch: ast.expr
    uses: list[ast.Name]  # of x in the branch


def turn(p: Fix, context: Context) -> None:
    owners = list(dict.fromkeys(x.rpartition(".")[0] for x in p.layers))
    blocks = [x for x in owners if context.layer(x).type in ("TransformerEncoderLayer", "TransformerDecoderLayer")]
    _torch_blocks(context, blocks)
    for kind in dict.fromkeys(context.layer(x).type for x in owners if x not in blocks):
        _own_blocks(context, kind, {x.rpartition(".")[2] for x in p.layers if context.layer(x.rpartition(".")[0]).type == kind})


def _torch_blocks(context: Context, blocks: Sequence[str]) -> None:
    """And a normalization at the end of their stack."""
    for place in context.sites(blocks):
        draft, call = context.call_at(place)
        set_argument(draft, call, "norm_first", "True")
    stacks = {x.rpartition(".layers.")[0] for x in blocks if ".layers." in x or x.startswith("layers.")}
    for place in context.sites(sorted(stacks)):
        draft, call = context.call_at(place)
        if called(call) in ("TransformerEncoder", "TransformerDecoder") and argument(call, "norm", 2) is None:
            text = f"{spelled(draft, 'torch.nn.LayerNorm')}({_width(context, blocks)})"
            draft, call = context.call_at(place)
            set_argument(draft, call, "norm", text)


def _width(context: Context, blocks: Sequence[str]) -> str:
    draft, call = context.call_at(context.site(blocks[0]))
    width = argument(call, "d_model", 0)
    return draft.source(width) if width is not None else str(context.layer(blocks[0]).output_shape[-1])


def _own_blocks(context: Context, kind: str, norms: set[str]) -> None:
    """Raises Unwritable when the class is not one of the user's files, or none of its sums is normalised in one expression."""
    draft = next((d for d in context.all_drafts() if _forward(d, kind) is not None), None)
    if draft is None:
        raise Unwritable(f"{kind} is not a class in your files with a forward of its own")
    found = _sums(draft, kind, norms)
    if not found:
        raise Unwritable(f"{draft.path}: the forward of {kind} has to be turned by hand: x + f(norm(x)) in place of norm(x + f(x))")
    if any(len(one.uses) > 1 for one in found) and any(isinstance(n, ast.Name) and n.id == NAME for n in ast.walk(draft.tree)):
        raise Unwritable(f"{draft.path}: the name {NAME} is taken")
    while found := _sums(draft, kind, norms):
        _turn(draft, found[0])


def _turn(draft: Draft, one: PostNorm) -> None:
    """A branch that uses its input several times, as attention does, gets the normalised input by a name."""
    norm = f"{draft.source(one.call.func)}({one.bypass.id})"
    several = len(one.uses) > 1
    edits = [Edit(*draft.span(use), NAME if several else norm) for use in one.uses]
    (start, end), (first, last) = draft.span(one.call), draft.span(one.call.args[0])
    if isinstance(draft.parent(one.call), (ast.Assign, ast.Return)) and "\n" not in draft.source(one.call):
        edits += [Edit(start, first, ""), Edit(last, end, "")]
    else:  # its brackets stay
        edits.append(Edit(*draft.span(one.call.func), ""))
    line = statement_of(draft, one.call).lineno
    draft.edit(edits)
    if several:
        insert_before(draft, next(n for n in ast.walk(draft.tree) if isinstance(n, ast.stmt) and n.lineno == line), f"{NAME} = {norm}")


def _forward(draft: Draft, kind: str) -> ast.FunctionDef | None:
    holder = next((n for n in draft.tree.body if isinstance(n, ast.ClassDef) and n.name == kind), None)
    return next((n for n in holder.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None) if holder is not None else None


def _sums(draft: Draft, kind: str, norms: set[str]) -> list[PostNorm]:
    """In the order of the source."""
    forward = _forward(draft, kind)
    found = [one for node in ast.walk(forward) if (one := _post_norm(node, norms)) is not None] if forward is not None else []
    return sorted(found, key=lambda one: (one.call.lineno, one.call.col_offset))


def _post_norm(node: ast.AST, norms: set[str]) -> PostNorm | None:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in norms and len(node.args) == 1):
        return None
    total = node.args[0]
    if not (isinstance(total, ast.BinOp) and isinstance(total.op, ast.Add)):
        return None
    for bypass, branch in ((total.left, total.right), (total.right, total.left)):
        if isinstance(bypass, ast.Name):
            uses = [n for n in ast.walk(branch) if isinstance(n, ast.Name) and n.id == bypass.id]
            if uses:
                return PostNorm(node, bypass, branch, uses)
    return None


WRITERS: dict[str, Writer] = {"pre-norm": turn}
