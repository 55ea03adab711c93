"""Losses: the one that fits, shapes that fit it, its sign, and forms that stay inside the range of numbers."""

import ast

from gradcheck.remedies.activation import operand_of, put_in_place
from gradcheck.remedies.editing.context import Context, Writer, literal, number, word
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.names import original, spelled
from gradcheck.remedies.editing.nodes import (
    argument,
    called,
    closed,
    dotted,
    every,
    in_place_of,
    scope_of,
    set_argument,
    statement_of,
    target_of,
)
from gradcheck.remedies.optimizer import write_settings
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location


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
        raise draft.refusal(place, "it is not written there what sums the term")
    set_argument(draft, place, "reduction", '"mean"')


def weigh(p: Fix, context: Context) -> None:
    """`torch.sum(x)` becomes `(1e-4 * torch.sum(x))`."""
    draft, call = context.call_at(p.location)
    draft.replace(call, f"({literal(number(p, 'weight'))} * {draft.source(call)})")


CLASSES = {
    "cross_entropy": "CrossEntropyLoss",
    "nll_loss": "NLLLoss",
    "binary_cross_entropy": "BCELoss",
    "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
    "mse_loss": "MSELoss",
    "l1_loss": "L1Loss",
    "smooth_l1_loss": "SmoothL1Loss",
    "huber_loss": "HuberLoss",
    "kl_div": "KLDivLoss",
}


LOGARITHMS = {"softmax": "log_softmax", "Softmax": "LogSoftmax", "Sigmoid": "LogSigmoid", "sigmoid": "logsigmoid"}


def uses(context: Context, function: str) -> list[tuple[Draft, ast.Call]]:
    """Calls of a loss function in the user's files, and calls that make its module."""
    found = context.calls(function, CLASSES.get(function, function))
    return [(draft, call) for draft, call in found if original(draft, dotted(call.func)).startswith("torch.nn.")]


def the_use(context: Context, function: str) -> tuple[Draft, ast.Call]:
    """The only one, or that at the place of the measured call. Raises Unwritable."""
    found = uses(context, function)
    places = [c.site for c in context.measurement.losses if c.function == function and c.site is not None]
    for place in places:
        draft, call = context.call_at(place)
        if any(call is other for _, other in found):
            return draft, call
    if len(found) != 1:
        raise Unwritable("the loss is not named in your files" if not found else "the loss is used in several places of your files")
    return found[0]


# ------------------------------------------------------------------------ the loss that fits


def replace(p: Fix, context: Context) -> None:
    old, new, function = word(p, "old"), word(p, "new"), word(p, "function")
    if "target" in p.settings:
        _coerce(p, context, old)
        return
    if old in ("cross_entropy", "nll_loss") and new == "binary_cross_entropy_with_logits":
        _binary(context, old)
        return
    if old == new:
        _logarithmic(context, old, function)
        return
    if old == "cross_entropy" and new == "nll_loss":
        _logarithmic(context, old, function)
    elif function == "softmax":
        put_in_place(context, _producer(context, old), "identity", p)
    draft, call = the_use(context, old)
    rename(draft, call, old, new)


def rename(draft: Draft, call: ast.Call, old: str, new: str) -> None:
    """Another loss, spelled like the one that it replaces."""
    name = called(call)
    other = new if name == old else CLASSES[new]
    if isinstance(call.func, ast.Attribute):
        end = draft.span(call.func)[1]
        draft.edit([Edit(end - len(name), end, other)])
        return
    kind = "torch.nn.functional." if name == old else "torch.nn."
    draft.replace(call.func, spelled(draft, kind + other))


def _producer(context: Context, loss: str) -> Location:
    call = next((c for c in context.measurement.losses if c.function == loss and c.producer_site is not None), None)
    if call is None or call.producer_site is None:
        raise Unwritable("the activation in front of the loss is not in your files")
    return call.producer_site


def _logarithmic(context: Context, loss: str, function: str) -> None:
    """log_softmax where softmax is; around the output, where there is neither."""
    if not function:
        draft, call = the_use(context, loss)
        _with_operands(context, draft, call, loss, f"{spelled(draft, 'torch.nn.functional.log_softmax')}({{0}}, dim=-1)", "{1}", loss)
        return
    draft, call = context.call_at(_producer(context, loss))
    name = called(call)
    if name not in LOGARITHMS:
        raise Unwritable(f"the {function} in front of the loss is not written there")
    operand = operand_of(draft, call)
    if name == "sigmoid" and operand is not None and not original(draft, dotted(call.func)).startswith("torch.nn.functional."):
        draft.replace(call, f"{spelled(draft, 'torch.nn.functional.logsigmoid')}({draft.source(operand)})")
        return
    end = draft.span(call.func)[1]
    draft.edit([Edit(end - len(name), end, LOGARITHMS[name])])


def _binary(context: Context, old: str) -> None:
    """One logit a sample, whose target is a number."""
    draft, call = the_use(context, old)
    _with_operands(context, draft, call, old, "{0}.reshape({1}.shape)", "{1}.to({0}.dtype)", "binary_cross_entropy_with_logits")


def _coerce(p: Fix, context: Context, loss: str) -> None:
    """Targets of the type and shape that the loss takes."""
    draft, call = the_use(context, loss)
    target = "{1}.long().flatten()" if word(p, "target") == "long" else "{1}.to({0}.dtype).reshape({0}.shape)"
    _with_operands(context, draft, call, loss, "{0}", target, loss)


# ---------------------------------------------------------------------------------- operands


def shapes(p: Fix, context: Context) -> None:
    """One operand of the loss loses, or gets, an axis of length 1."""
    form = f".{word(p, 'operation', 'squeeze')}({round(number(p, 'dim', -1))})"
    operand = word(p, "operand", "output")
    first, second = ("{0}" + form, "{1}") if operand == "output" else ("{0}", "{1}" + form)
    mix = next((x for x in context.measurement.mixes if x.site is not None and p.location in (None, x.site)), None)
    if mix is not None and not any(c.broadcast is not None for c in context.measurement.losses):
        _mixed(context, mix.site, form, output_first=operand == "output")
        return
    loss = next((c.function for c in context.measurement.losses if c.broadcast is not None), None)
    if loss is None:
        raise Unwritable("the call of the loss is not in your files")
    draft, call = the_use(context, loss)
    _with_operands(context, draft, call, loss, first, second, loss)


def _mixed(context: Context, place: Location | None, form: str, *, output_first: bool) -> None:
    """A subtraction written by hand: the operand with one axis more."""
    draft, node = context.at(place)
    mix = next(x for x in context.measurement.mixes if x.site == place)
    if not isinstance(node, ast.BinOp):
        raise Unwritable(f"{place}: no operation on two tensors is written there")
    longer = node.left if len(mix.left) > len(mix.right) else node.right
    draft.replace(longer, closed(draft, longer) + form)


def _with_operands(context: Context, draft: Draft, call: ast.Call, loss: str, first: str, second: str, new: str) -> None:
    """Changes the operands of a functional call; a loss module becomes a function that changes them."""
    if called(call) == loss:
        output, target = argument(call, "input", 0), argument(call, "target", 1)
        if output is None or target is None:
            raise draft.refusal(call, "the operands of the loss are not written there")
        texts = [closed(draft, x) for x in (output, target)]
        draft.edit([_to(draft, output, first.format(*texts)), _to(draft, target, second.format(*texts))])
        if new != loss:
            rename(draft, call, loss, new)
        return
    _as_function(draft, call, new, first, second)


def _to(draft: Draft, node: ast.expr, text: str) -> Edit:
    """An operand's new source; one that stays as it is keeps its own form."""
    start, end = draft.span(node)
    return Edit(start, end, draft.text[start:end] if text == closed(draft, node) else text)


def _as_function(draft: Draft, call: ast.Call, function: str, first: str, second: str) -> None:
    """`loss_fn = nn.MSELoss()` becomes a function of that name; before its calls, for an attribute."""
    statement, target = statement_of(draft, call), target_of(draft, call)
    if isinstance(target, ast.Name) and isinstance(draft.parent(statement), ast.Module):
        kept = [draft.source(k) for k in call.keywords]
        if call.args:
            raise draft.refusal(call, "the loss is created with arguments by position")
        tensor, loss = spelled(draft, "torch.Tensor"), spelled(draft, f"torch.nn.functional.{function}")
        operands = [x.format("output", "target") for x in (first, second)]
        newline = draft.document.newline
        code = (
            f"def {target.id}(output: {tensor}, target: {tensor}) -> {tensor}:{newline}    return {loss}({', '.join([*operands, *kept])})"
        )
        draft.replace(statement, newline + newline + code + newline)
        return
    if target is None or not dotted(target):
        raise draft.refusal(call, "the loss has no name")
    _at_calls(draft, dotted(target), first, second)


def _at_calls(draft: Draft, name: str, first: str, second: str) -> None:
    found = [n for n in every(draft.tree, ast.Call) if dotted(n.func) == name and len(n.args) == 2]
    if not found:
        raise Unwritable(f"{draft.path}: {name} is not called with output and target")
    for call in found:
        texts = [closed(draft, x) for x in call.args]
        draft.edit([_to(draft, call.args[0], first.format(*texts)), _to(draft, call.args[1], second.format(*texts))])


# -------------------------------------------------------------------------------------- sign


def sign(p: Fix, context: Context) -> None:
    """Downhill: of the loss, or of the optimizer."""
    if "function" not in p.settings:
        write_settings.ascent(p, context)
        return
    draft, call = the_use(context, word(p, "function"))
    for above in (call, *draft.ancestors(call)):
        if isinstance(above, ast.UnaryOp) and isinstance(above.op, ast.USub):
            draft.replace(above, in_place_of(draft, above.operand, above))
            return
        parent = draft.parent(above)
        if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Sub) and parent.right is above:
            _operator(draft, parent)
            return
        if isinstance(above, ast.stmt):
            break
    _later(draft, call)


def _operator(draft: Draft, node: ast.BinOp) -> None:
    start, end = draft.span(node.left)[1], draft.span(node.right)[0]
    gap = draft.text[start:end]
    draft.edit([Edit(start, end, gap.replace("-", "+", 1))])


def _later(draft: Draft, call: ast.Call) -> None:
    """`loss = f(...)`, and `-loss` further down."""
    statement = statement_of(draft, call)
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    for node in every(scope_of(draft, call), ast.UnaryOp):
        if isinstance(node.op, ast.USub) and target is not None and dotted(node.operand) == dotted(target):
            draft.replace(node, in_place_of(draft, node.operand, node))
            return
    raise draft.refusal(call, "the sign is not written there")


# ----------------------------------------------------------------------------- label smoothing


def smoothing(p: Fix, context: Context) -> None:
    set_argument(*the_use(context, "cross_entropy"), "label_smoothing", literal(number(p, "smoothing")))


WRITERS: dict[str, Writer] = {
    "replace-loss": replace,
    "match-shapes": shapes,
    "flip-sign": sign,
    "label-smoothing": smoothing,
    "average-term": average,
    "kl-weight": weigh,
}
