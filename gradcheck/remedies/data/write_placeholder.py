"""The input in place of a tensor like it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradcheck.remedies.data.placeholder import copied, placeholders
from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.nodes import in_place_of
from gradcheck.types.fix import Fix


def use_input(p: Fix, context: Context) -> None:
    """`self.body(torch.zeros_like(x))` becomes `self.body(x)`, where the model's classes have one such place."""
    found = [(draft, call) for draft in context.all_drafts() for call in _in_classes(context, draft)]
    if len(found) != 1:
        raise Unwritable(f"{'several places' if found else 'no place'} of the model's code put a tensor like the input in its place")
    draft, call = found[0]
    argument = copied(call)
    assert argument is not None
    draft.replace(call, in_place_of(draft, argument, call))


def _in_classes(context: Context, draft: Draft) -> Iterator[ast.Call]:
    """Places in the methods of the classes that the model is made of."""
    types = {layer.type for layer in context.measurement.layers}
    for node in ast.walk(draft.tree):
        if isinstance(node, ast.ClassDef) and node.name in types:
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield from placeholders(method)


WRITERS: dict[str, Writer] = {"use-input": use_input}
