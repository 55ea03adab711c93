"""The training loop: what belongs once into each epoch, and what into each step: modes, schedules, batches."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.loop import Loop, call_of, calls, code_of, loops, owner_of, plain
from gradcheck.remedies.editing.nodes import (
    argument,
    assigned,
    called,
    class_of,
    dotted,
    function_of,
    names_in,
    scope_of,
    set_argument,
    statement_of,
)
from gradcheck.remedies.editing.statements import block_of, insert_after, insert_before, remove_statement
from gradcheck.remedies.loop.write_steps import backward_of, loop_of, step_end, step_of
from gradcheck.types.fix import Fix

# ---------------------------------------------------------------------- restore-training-mode


def mode(p: Fix, context: Context) -> None:
    """`model.train()` before the loop over the batches, or after an evaluation within that loop."""
    seen = loop_of(context).evaluation
    home, evaluation = call_of(context, seen.site if seen is not None else None, ("eval", "train"), "the call of eval()")
    draft, backward = backward_of(context)
    name = _model(context, draft, backward, home, evaluation)
    around = loops(draft, backward)
    if not around:
        insert_before(draft, _top(draft, backward), f"{name}.train()")
        return
    inside = _evaluating(draft, around[0], home, evaluation)
    if inside is None:
        insert_before(draft, around[0], f"{name}.train()")
    else:
        insert_after(draft, inside, f"{name}.train()")


def _top(draft: Draft, node: ast.AST) -> ast.stmt:
    """The first statement of a function after its docstring. Raises Unwritable for code in no function."""
    function = function_of(draft, node)
    if function is None:
        raise Unwritable(f"{draft.path}: the backward pass is in no loop")
    described = ast.get_docstring(function) is not None and len(function.body) > 1
    return function.body[1 if described else 0]


def _model(context: Context, draft: Draft, backward: ast.Call, home: Draft, evaluation: ast.Call) -> str:
    """What the model is called where it is trained: as where it is evaluated, or as where it is called."""
    scope = scope_of(draft, backward)
    if home is draft and owner_of(evaluation) and (scope_of(draft, evaluation) is scope or owner_of(evaluation).startswith("self.")):
        return owner_of(evaluation)
    batches = loop_of(context).batches
    if batches is not None and batches.site is not None and batches.site.detail is None:
        where, forward = context.call_at(batches.site, "the call of the model")
        if where is draft and scope_of(draft, forward) is scope and dotted(forward.func):
            return dotted(forward.func)
    raise draft.refusal(backward, "it is not plain what the model is called where it is trained")


def _evaluating(draft: Draft, loop: Loop, home: Draft, evaluation: ast.Call) -> ast.stmt | None:
    """The last statement of an evaluation that is made within the loop: of the block that calls eval(), or the call of its function."""
    function = function_of(home, evaluation)
    if home is draft and function is function_of(draft, loop):
        if loop not in draft.ancestors(evaluation):
            return None
        block = block_of(draft, statement_of(draft, evaluation))
        if block is loop.body:
            raise draft.refusal(evaluation, "each step puts the model into evaluation mode")
        return block[-1]
    if function is None:
        return None
    made = next((c for one in loop.body for c in calls(one, function.name)), None)
    return statement_of(draft, made) if made is not None else None


# ---------------------------------------------------- change-schedule, step-schedule-per-epoch, -per-batch


def per_epoch(p: Fix, context: Context) -> None:
    """`scheduler.step()` moves from the loop over the batches to the end of the loop over the epochs around it."""
    site = p.location or loop_of(context).schedule_site
    draft, call = call_of(context, site, ("step",), "the schedule's step")
    around = loops(draft, call)
    if len(around) < 2:
        raise draft.refusal(call, "there is no loop over epochs around it: give the schedule in steps")
    statement = plain(draft, call)
    if block_of(draft, statement) is not around[0].body or call.args or call.keywords:
        raise draft.refusal(call, "it depends on more than the step")
    insert_after(draft, around[0], code_of(draft, statement))
    remove_statement(draft, statement)


def per_batch(p: Fix, context: Context) -> None:
    """`scheduler.step()` moves from the end of an epoch to after the optimizer's step."""
    site = p.location or loop_of(context).schedule_site
    draft, call = call_of(context, site, ("step",), "the schedule's step")
    home, step = step_of(context)
    statement = plain(draft, call)
    if call.args or call.keywords or isinstance(draft.parent(statement), ast.If):
        raise draft.refusal(call, "it depends on more than the epoch")
    if home is not draft or not _known_there(draft, call, step):
        raise draft.refusal(call, "the schedule has no name where the optimizer steps")
    insert_after(draft, step_end(draft, step), code_of(draft, statement))
    remove_statement(draft, statement)


def _known_there(draft: Draft, call: ast.Call, step: ast.Call) -> bool:
    """Whether what a method is called on has the same name where the optimizer steps."""
    here, there = scope_of(draft, call), scope_of(draft, step)
    if here is there or here is draft.tree:
        return bool(owner_of(call))
    return owner_of(call).startswith("self.") and class_of(draft, call) is class_of(draft, step)


# --------------------------------------------------------------------------------- next-batch


def batch(p: Fix, context: Context) -> None:
    """A loader whose first batch is taken in each step shuffles; a batch that is taken before the loop is taken in it."""
    draft, backward = backward_of(context)
    around = loops(draft, backward)
    if not around:
        raise draft.refusal(backward, "the step is in no loop")
    taken = [n for n in ast.walk(scope_of(draft, backward)) if _first_of_loader(n)]
    inside = [n for n in taken if around[0] in draft.ancestors(n)]
    if len(taken) != 1:
        raise draft.refusal(backward, "the batch is not taken by a single next(iter(loader))")
    loader = _loader(draft, taken[0])
    if not inside:
        _into(draft, around[0], taken[0])
        loader = _loader(draft, next(n for n in ast.walk(draft.tree) if _first_of_loader(n) and ast.dump(n) == ast.dump(taken[0])))
    given = argument(loader, "shuffle", 2)
    if not (isinstance(given, ast.Constant) and given.value is True):
        set_argument(draft, loader, "shuffle", "True", 2)


def _first_of_loader(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func) == "next" and len(node.args) == 1 and called(node.args[0]) == "iter"


def _loader(draft: Draft, taken: ast.AST) -> ast.Call:
    """The call that makes the loader. Raises Unwritable unless shuffling makes its first batch another one each time."""
    assert isinstance(taken, ast.Call) and isinstance(taken.args[0], ast.Call)
    given = taken.args[0].args[0] if taken.args[0].args else None
    made = assigned(draft, given) if isinstance(given, ast.Name) else given
    if not isinstance(made, ast.Call) or called(made) != "DataLoader":
        raise draft.refusal(taken, "the loader is not made in this file")
    if argument(made, "sampler") is not None or argument(made, "batch_sampler") is not None:
        raise draft.refusal(made, "the loader has a sampler of its own")
    return made


def _into(draft: Draft, loop: Loop, taken: ast.AST) -> None:
    """Moves the statement that takes the batch from before the loop to the top of its body."""
    statement = statement_of(draft, taken)
    if not isinstance(statement, ast.Assign) or statement.value is not taken or block_of(draft, statement) is not block_of(draft, loop):
        raise draft.refusal(statement, "the batch is not taken right in front of the loop")
    names = names_in(*statement.targets)
    block = block_of(draft, statement)
    place, target = (next(i for i, one in enumerate(block) if one is s) for s in (statement, loop))
    if target < place or names & names_in(*block[place + 1 : target]):
        raise draft.refusal(statement, "the batch is used before the loop too")
    insert_before(draft, loop.body[0], code_of(draft, statement))
    remove_statement(draft, statement)


WRITERS: dict[str, Writer] = {
    "restore-training-mode": mode,
    "change-schedule": per_epoch,
    "step-schedule-per-epoch": per_epoch,
    "step-schedule-per-batch": per_batch,
    "next-batch": batch,
}
