"""How a term of the loss is taken together: a mean in place of a sum."""

from __future__ import annotations

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Unwritable
from gradcheck.remedies.editing.nodes import argument, called, set_argument
from gradcheck.types.fix import Fix


def average(p: Fix, context: Context) -> None:
    """`torch.sum(x)` becomes `torch.mean(x)`, `x.sum(1)` becomes `x.mean(1)`, and `reduction="sum"` becomes `reduction="mean"`."""
    draft, place = context.call_at(p.location)
    calls = [n for n in ast.walk(place) if isinstance(n, ast.Call)]
    summed = [c for c in calls if called(c) == "sum"]
    if len(summed) == 1 and isinstance(summed[0].func, ast.Attribute):
        function = summed[0].func
        draft.replace(function, f"{draft.source(function.value)}.mean")
        return
    given = argument(place, "reduction")
    if summed or not isinstance(given, ast.Constant) or given.value != "sum":
        raise Unwritable(f"{draft.path}:{place.lineno}: it is not written there what sums the term")
    set_argument(draft, place, "reduction", '"mean"')


def weigh(p: Fix, context: Context) -> None:
    """`torch.sum(x)` becomes `(1e-4 * torch.sum(x))`."""
    draft, call = context.call_at(p.location)
    draft.replace(call, f"({literal(number(p, 'weight'))} * {draft.source(call)})")


WRITERS: dict[str, Writer] = {"average-term": average, "kl-weight": weigh}
