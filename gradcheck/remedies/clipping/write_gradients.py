"""Clipping: in the training loop, before the step; in a model file as the number that the loop reads."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.imports import spelled
from gradcheck.remedies.editing.loop import parameters, stepped, steps
from gradcheck.remedies.editing.nodes import called, set_argument, set_value, statement_of
from gradcheck.remedies.editing.statements import block_of, insert_before, line_start
from gradcheck.types.fix import Fix

# The names that gradcheck reads in a model file, in capitals too; see gradcheck/loading/optimizers.py.
BY_NORM = ("clip_grad_norm", "max_grad_norm", "grad_clip", "gradient_clip_val", "clip_norm", "grad_clip_norm", "grad_norm_clip")
BY_VALUE = ("clip_grad_value", "clip_value", "grad_clip_value", "max_grad_value")


def by_norm(p: Fix, context: Context) -> None:
    _clip(context, "clip_grad_norm_", "max_norm", number(p, "max_norm"), "max_grad_norm")


def by_value(p: Fix, context: Context) -> None:
    _clip(context, "clip_grad_value_", "clip_value", number(p, "clip_value"), "clip_grad_value")


def _clip(context: Context, function: str, parameter: str, threshold: float, name: str) -> None:
    text = literal(threshold)
    if _existing_call(context, function, parameter, text) or (context.measurement.loop is None and _existing_number(context, name, text)):
        return
    loops = list(steps(context))
    if context.measurement.loop is None:
        _new_number(context, name, text)
        text = name
        loops = list(steps(context))
    elif not loops:
        raise Unwritable("there is no training loop in your files")
    for index in range(len(loops)):
        draft, step = list(steps(context))[index]
        _before_step(context, draft, step, function, text)


def _existing_call(context: Context, function: str, parameter: str, text: str) -> bool:
    """A loop that clips already gets the new threshold, and the new kind."""
    clip = context.measurement.clip
    if clip is None or clip.site is None:
        return False
    try:
        draft, node = context.at(clip.site)
    except Unwritable:  # an assignment, not a call
        return False
    if not isinstance(node, ast.Call) or called(node) not in ("clip_grad_norm_", "clip_grad_value_"):
        return False
    if called(node) != function:
        if len(node.args) != 2:
            raise Unwritable(f"{draft.path}:{node.lineno}: the call is not of the usual form")
        set_value(draft, node.args[1], text)
        draft, node = context.at(clip.site)
        assert isinstance(node, ast.Call)
        draft.replace(node.func, draft.source(node.func).removesuffix(called(node)) + function)
        return True
    given = next((k.value for k in node.keywords if k.arg == parameter), node.args[1] if len(node.args) > 1 else None)
    if given is None:
        set_argument(draft, node, parameter, text)
    else:
        set_value(draft, given, text)
    return True


def _existing_number(context: Context, name: str, text: str) -> bool:
    """A file that has the customary number, or None in its place, gets the new one."""
    for draft in context.all_drafts():
        for node in draft.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
            if not isinstance(target, ast.Name) or target.id.lower() not in (*BY_NORM, *BY_VALUE):
                continue
            assert isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
            same = target.id.lower() in (BY_NORM if name == "max_grad_norm" else BY_VALUE)
            draft.replace(node.value, text)
            if not same:
                _rename(draft, target.id, name.upper() if target.id.isupper() else name)
            return True
    return False


def _rename(draft: Draft, old: str, new: str) -> None:
    """The number's name, wherever it is read, and in the comment right above it."""
    while (found := next((n for n in ast.walk(draft.tree) if isinstance(n, ast.Name) and n.id == old), None)) is not None:
        draft.replace(found, new)
    node = next(n for n in ast.walk(draft.tree) if isinstance(n, ast.Name) and n.id == new)
    end = line_start(draft.text, draft.span(node)[0])
    start = line_start(draft.text, max(0, end - 1))
    comment = draft.text[start:end]
    if comment.lstrip().startswith("#"):
        kinds = ("clip_grad_value_", "clip_grad_norm_") if new.lower() in BY_NORM else ("clip_grad_norm_", "clip_grad_value_")
        draft.edit([Edit(start, end, comment.replace(*kinds).replace(old, new))])


def _new_number(context: Context, name: str, text: str) -> None:
    """Before what makes the optimizer, or the model, at the top level."""
    place = context.measurement.optimizer.site or context.root
    draft, node = context.at(place, "the optimizer")
    top = next((a for a in (node, *draft.ancestors(node)) if isinstance(draft.parent(a), ast.Module)), None)
    if top is None:
        raise Unwritable("there is no place for the number")
    comment = f"# The training loop clips with it between backward and step.\n{name} = {text}\n"
    definition = isinstance(top, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    insert_before(draft, top, f"{comment}\n\n" if definition else f"{comment}")


def _before_step(context: Context, draft: Draft, step: ast.Call, function: str, text: str) -> None:
    optimizer, scaler = stepped(step)
    block = block_of(draft, statement_of(draft, step))
    if any(called(n) in ("clip_grad_norm_", "clip_grad_value_") for one in block for n in ast.walk(one)):
        raise Unwritable(f"{draft.path}:{step.lineno}: the loop clips already")
    clip = f"{spelled(draft, 'torch.nn.utils.' + function)}({parameters(draft, step, optimizer)}, {text})"
    lines = [clip]
    unscaled = any(called(n) == "unscale_" for one in block for n in ast.walk(one))
    if scaler is not None and not unscaled and scaler != optimizer:
        lines.insert(0, f"{scaler}.unscale_({optimizer})")
    again = next((d, s) for d, s in steps(context) if d is draft and stepped(s)[0] == optimizer and not _clipped(d, s))
    insert_before(again[0], again[1], "\n".join(lines))


def _clipped(draft: Draft, step: ast.Call) -> bool:
    return any(
        called(n) in ("clip_grad_norm_", "clip_grad_value_") for one in block_of(draft, statement_of(draft, step)) for n in ast.walk(one)
    )


WRITERS: dict[str, Writer] = {"clip-gradient-norm": by_norm, "clip-gradient-value": by_value}
