"""The generated function `apply_gradcheck_fixes(model)`: for changes that have no expression of their own to edit."""

import ast

from gradcheck.remedies.editing.context import Context
from gradcheck.remedies.editing.draft import Draft, Edit
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import Function, called, defined, function_of, statement_of
from gradcheck.remedies.editing.placing import HELPER
from gradcheck.remedies.editing.statements import insert_after, insert_before, insert_definition

NAME = HELPER


def home(context: Context) -> Draft:
    """The file in which the model is made. Raises Unwritable when none of the user's makes it."""
    return context.at(context.root, "the place where the model is made")[0]


def apply_to_model(context: Context, code: str, doc: str) -> None:
    """Adds statements about `model` to the function, which is made and called once, where the model is made.

    `code` spells torch's names as the file does; `doc` is a sentence for the docstring of a new function.
    """
    draft = home(context)
    function = defined(draft, NAME)
    if function is None:
        _create(context, draft, doc)
        _call(context, draft)
        function = defined(draft, NAME)
    assert function is not None
    there = {ast.dump(statement) for statement in function.body}
    if any(ast.dump(statement) not in there for statement in ast.parse(code).body):
        insert_before(draft, function.body[-1], code)


def _create(context: Context, draft: Draft, doc: str) -> None:
    module = spelled(draft, "torch.nn.Module")
    _, expression = context.at(context.root)
    insert_definition(draft, expression, f'def {NAME}(model: {module}) -> {module}:\n    """{doc}"""\n    return model')


def _call(context: Context, draft: Draft) -> None:
    """`return model` of the factory becomes `return apply_gradcheck_fixes(model)`; else the creating expression is wrapped."""
    _, expression = context.at(context.root)
    target: ast.expr = expression
    statement = statement_of(draft, expression)
    function = function_of(draft, expression)
    if function is not None and isinstance(statement, (ast.Assign, ast.AnnAssign)):
        names = [t.id for t in (statement.targets if isinstance(statement, ast.Assign) else [statement.target]) if isinstance(t, ast.Name)]
        returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and isinstance(n.value, ast.Name)]
        ends = [value for value in returned if isinstance(value, ast.Name) and value.id in names]
        if len(ends) == 1:
            target = ends[0]
    if any(called(a) == NAME for a in draft.ancestors(target)):
        return
    start, end = draft.span(target)
    if isinstance(statement, ast.Return) and statement.value is target and "\n" in draft.text[start:end] and _free(function, "model"):
        insert_after(draft, statement, f"return {NAME}(model)")
        place = draft.span(statement_of(draft, context.at(context.root)[1]))[0]
        draft.edit([Edit(place, draft.span(context.at(context.root)[1])[0], "model = ")])
        return
    draft.edit([Edit(start, start, f"{NAME}("), Edit(end, end, ")")])


def _free(function: Function | None, name: str) -> bool:
    """A function does not use the name."""
    return function is not None and not any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(function))
