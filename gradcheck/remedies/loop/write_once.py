"""What should be made once: an optimizer or a schedule that the loop makes anew moves before it; an average follows buffers, too."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Unwritable
from gradcheck.remedies.editing.loop import Loop, code_of, loops, plain
from gradcheck.remedies.editing.nodes import called, dotted
from gradcheck.remedies.editing.statements import insert_after, insert_before, remove_statement
from gradcheck.types.fix import Fix

# ------------------------------------------------------------------ keep-optimizer, keep-scheduler


def keep(p: Fix, context: Context) -> None:
    """`optimizer = Adam(model.parameters())` moves before the outermost loop that changes nothing it is made from."""
    draft, call = context.call_at(p.location)
    statement = plain(draft, call)
    if not isinstance(statement, ast.Assign):
        raise Unwritable(f"{draft.path}:{call.lineno}: what is made gets no name")
    around = loops(draft, call)
    made = {name for target in statement.targets for name in _names(target)}
    used = _names(call)
    outer = None
    for loop in around:
        if used & _bound(loop):
            break
        outer = loop
    if outer is None:
        raise Unwritable(f"{draft.path}:{call.lineno}: it is made from what changes in the loop, or in a function that is called from it")
    others = [
        n for n in ast.walk(outer) if isinstance(n, ast.Assign) and n is not statement and made & {x for t in n.targets for x in _names(t)}
    ]
    if others:
        raise Unwritable(f"{draft.path}:{others[0].lineno}: the loop gives the name to something else as well")
    text, dump = code_of(draft, statement), ast.dump(statement)
    insert_before(draft, outer, text)
    moved = [n for n in ast.walk(draft.tree) if isinstance(n, ast.Assign) and ast.dump(n) == dump]
    remove_statement(draft, moved[-1])


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _bound(loop: Loop) -> set[str]:
    """Names that a loop gives a value, its own target among them."""
    return {n.id for n in ast.walk(loop) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


# ---------------------------------------------------------------------------------- follow-buffers


def buffers(p: Fix, context: Context) -> None:
    """After a loop over the parameters of both models comes one over their buffers."""
    averages = context.measurement.loop.averages if context.measurement.loop is not None else None
    stale = [a for a in averages or () if a.stale]
    if len(stale) != 1:
        raise Unwritable("it is not plain which model is to follow")
    found = stale[0]
    for draft in context.all_drafts():
        for node in ast.walk(draft.tree):
            pair = _followed(node, found.name.removesuffix(".module"))
            if pair is not None:
                mine, leader = pair
                copying = f"for followed, leading in zip({mine}.buffers(), {leader}.buffers()):\n    followed.copy_(leading)"
                insert_after(draft, node, copying)
                return
    raise Unwritable(f"it is not written in your files how {found.name or 'the model'} follows")


def _followed(node: ast.AST, name: str) -> tuple[str, str] | None:
    """The models of `for a, b in zip(mine.parameters(), leader.parameters())`, in whichever order."""
    if not isinstance(node, ast.For) or called(node.iter) != "zip" or not isinstance(node.iter, ast.Call) or len(node.iter.args) != 2:
        return None
    sides = [
        dotted(a.func.value)
        for a in node.iter.args
        if isinstance(a, ast.Call) and isinstance(a.func, ast.Attribute) and called(a) == "parameters"
    ]
    if len(sides) != 2 or "" in sides or not name or name not in sides:
        return None
    other = sides[1 - sides.index(name)]
    return (name, other) if any(n.endswith("_") and not n.startswith("_") for n in map(called, ast.walk(node))) else None


WRITERS: dict[str, Writer] = {"keep-optimizer": keep, "keep-scheduler": keep, "follow-buffers": buffers}
