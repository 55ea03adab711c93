"""The optimizer's class and its settings, at the expression that creates it."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import (
    argument,
    assigned,
    called,
    calls_in,
    defined,
    definition,
    dotted,
    every,
    names_in,
    remove_argument,
    set_argument,
    set_value,
    statement_of,
    target_of,
)
from gradcheck.remedies.editing.statements import insert_after, insert_before, insert_definition
from gradcheck.remedies.optimizer.settings import MOST_DECAY
from gradcheck.types.fix import Fix

_SGD_ALONE = ("momentum", "dampening", "nesterov")
_MOST_POSITIONS = 2  # params and lr, which both take in this order


def adam(p: Fix, context: Context) -> None:
    """Adam, with weight decay AdamW, for SGD: its name, its rate and its decay; what only SGD has goes."""
    draft, call = created(context)
    if called(call) != "SGD":
        raise draft.refusal(call, "the optimizer is not created as SGD there")
    if len(call.args) > _MOST_POSITIONS or any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        raise draft.refusal(call, "not every setting of SGD has its name there")
    if any(own_values(draft, call, name) for name in _SGD_ALONE):
        raise draft.refusal(call, "groups of the optimizer have settings that only SGD has")
    if calls_in(draft.tree, "CyclicLR"):
        raise Unwritable(f"{draft.path}: a cyclic schedule has rates of its own")
    rate(p, context)
    for name in _SGD_ALONE:
        draft, call = created(context)
        if argument(call, name) is not None:
            remove_argument(draft, call, name)
    strength = number(p, "weight_decay")
    _rename(draft, call.func, "SGD", "AdamW" if strength else "Adam")
    if strength >= MOST_DECAY:
        decay(p, context)
    draft, call = created(context)
    if strength and argument(call, "weight_decay") is None:
        keyword(context, "weight_decay", literal(0.0))  # AdamW has some where it is not told otherwise


def _rename(draft: Draft, function: ast.expr, old: str, new: str) -> None:
    """Another optimizer of torch, spelled like the one that it replaces."""
    by_name = isinstance(function, ast.Name)
    draft.replace(function, spelled(draft, f"torch.optim.{new}") if by_name else f"{draft.source(function).removesuffix(old)}{new}")


_RATE_POSITION = 1  # of lr, in every optimizer of torch


def rate(p: Fix, context: Context) -> None:
    """The rate of the optimizer; groups that set their own keep their ratio to it."""
    draft, call = created(context)
    new, old = number(p, "lr"), context.measurement.optimizer.lr
    if _peak(draft, call, literal(new)):
        return
    groups = own_values(draft, call, "lr")
    if groups and old <= 0:
        raise Unwritable("the groups of the optimizer have rates of their own")
    for value in groups:
        if not isinstance(value, ast.Constant) or not isinstance(value.value, (int, float)):
            raise draft.refusal(value, "the rate of a group is not a number in the source")
        draft.replace(value, literal(value.value * new / old))
    if not groups or argument(call, "lr", _RATE_POSITION) is not None:
        set_argument(draft, call, "lr", literal(new), _RATE_POSITION)


def _peak(draft: Draft, call: ast.Call, text: str) -> bool:
    """One-cycle schedules go by a highest rate of their own, whatever rate the optimizer is given."""
    name = named(draft, call)
    for node in calls_in(draft.tree, "OneCycleLR"):
        if node.args and name and dotted(node.args[0]) == name:
            given = argument(node, "max_lr", 1)
            if given is None or isinstance(given, (ast.List, ast.Tuple)):
                raise draft.refusal(node, "the schedule has a highest rate for each group")
            set_value(draft, given, text)
            return True
    return False


def epsilon(p: Fix, context: Context) -> None:
    keyword(context, "eps", literal(number(p, "eps")))


def momentum(p: Fix, context: Context) -> None:
    keyword(context, "momentum", literal(number(p, "momentum")))


def decay(p: Fix, context: Context) -> None:
    """Weight decay of the optimizer and of its groups; of a penalty in the loss, its factor."""
    if "divisor" in p.settings:
        _penalty(p, context)
        return
    draft, call = created(context)
    new = number(p, "weight_decay")
    own = own_values(draft, call, "weight_decay")
    for value in own:
        if isinstance(value, ast.Constant) and isinstance(value.value, (int, float)) and value.value > new:
            draft.replace(value, literal(new))
    if argument(call, "weight_decay") is not None or not own:
        keyword(context, "weight_decay", literal(new))


def _penalty(p: Fix, context: Context) -> None:
    """Divides the factor of a penalty that is added to the loss by hand."""
    divisor = number(p, "divisor")
    for draft in context.all_drafts():
        terms = (n for n in every(draft.tree, ast.BinOp) if isinstance(n.op, ast.Mult) and _added(draft, n))
        for node in terms:
            for side in (node.left, node.right):
                value = definition(draft, side) or side
                if isinstance(value, ast.Constant) and isinstance(value.value, float):
                    draft.replace(value, literal(value.value / divisor))
                    return
    raise Unwritable("the factor of the penalty is not a number in the source")


def _added(draft: Draft, node: ast.AST) -> bool:
    """It is a term of a sum, or what `loss +=` adds."""
    parent = draft.parent(node)
    return isinstance(parent, (ast.BinOp, ast.AugAssign)) and isinstance(parent.op, ast.Add)


def decoupled(p: Fix, context: Context) -> None:
    """AdamW for Adam; other optimizers of torch have a switch."""
    draft, call = created(context)
    name = called(call)
    if name == "Adam":
        _rename(draft, call.func, "Adam", "AdamW")
    elif name in ("NAdam", "RAdam"):
        set_argument(draft, call, "decoupled_weight_decay", "True")
    elif name != "AdamW":
        raise Unwritable(f"{name} has no form with decoupled weight decay")
    if "weight_decay" in p.settings:
        keyword(context, "weight_decay", literal(number(p, "weight_decay")))


def groups(p: Fix, context: Context) -> None:
    """Two groups: weight matrices with the decay, biases and gains without; two for each of those that are there."""
    draft, call = created(context)
    given = argument(call, "params", 0)
    own = [x for x in _groups(draft, call) if isinstance(x, ast.Dict)]
    if own and len(own) == len(_groups(draft, call)):
        for group in own:
            _halve(draft, group)
        return
    if not (isinstance(given, ast.Call) and called(given) == "parameters" and isinstance(given.func, ast.Attribute)):
        raise draft.refusal(call, "the optimizer is not given the parameters of modules")
    if context.measurement.optimizer.weight_decay <= 0:
        raise Unwritable("the optimizer has no weight decay of its own")
    if taken := names_in(draft.tree) & {"decayed", "spared"}:
        raise Unwritable(f"{draft.path}: the name {min(taken)} is taken")
    owner = draft.source(given.func.value)
    draft.replace(given, '[{"params": decayed}, {"params": spared, "weight_decay": 0.0}]')
    lines = (
        f"decayed = [p for p in {owner}.parameters() if p.ndim >= 2]",
        f"spared = [p for p in {owner}.parameters() if p.ndim < 2]  # biases and gains",
    )
    insert_before(draft, call, "\n".join(lines))


def _halve(draft: Draft, group: ast.Dict) -> None:
    """Two groups in place of one that is written as a dictionary."""
    items = {k.value: v for k, v in zip(group.keys, group.values, strict=True) if isinstance(k, ast.Constant)}
    params, decay = items.pop("params", None), items.get("weight_decay")
    if isinstance(decay, ast.Constant) and decay.value == 0:
        return
    if len(items) != len(group.keys) - 1 or called(params or group) != "parameters" or "\n" in draft.source(group):
        raise draft.refusal(group, "the group is not given the parameters of one module")
    assert params is not None
    rest = {key: f', "{key!s}": {draft.source(value)}' for key, value in items.items()}
    own = "".join(text for k, text in rest.items() if k != "weight_decay")
    halves = (("p.ndim >= 2", "".join(rest.values())), ("p.ndim < 2", f'{own}, "weight_decay": 0.0'))
    draft.replace(group, ", ".join(f'{{"params": [p for p in {draft.source(params)} if {which}]{more}}}' for which, more in halves))


def ascent(p: Fix, context: Context) -> None:
    """Downhill again, in the optimizer."""
    draft, call = created(context)
    if argument(call, "maximize") is not None:
        remove_argument(draft, call, "maximize")
        return
    given = argument(call, "lr", _RATE_POSITION)
    value = (definition(draft, given) or given) if given is not None else None
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        draft.replace(value, draft.source(value.operand))
        return
    raise Unwritable("neither maximize=True nor a negative rate is written where the optimizer is created")


def named(draft: Draft, call: ast.Call) -> str:
    """The name that what a call makes is given; "" where it gets none."""
    target = target_of(draft, call)
    return dotted(target) if target is not None else ""


def with_name(context: Context, line: str) -> None:
    """A line about the optimizer, `{0}` in it, after its creation; it gets a name where it is returned as it is made.

    Raises Unwritable where it has no name and gets none.
    """
    draft, call = created(context)
    made, name = statement_of(draft, call), named(draft, call)
    if name:
        insert_after(draft, made, line.format(name))
    elif isinstance(made, ast.Return) and made.value is call:
        insert_after(draft, made, f"{line.format('optimizer')}\nreturn optimizer")
        draft.edit([Edit(draft.span(made)[0], draft.span(call)[0], "optimizer = ")])
    else:
        raise draft.refusal(call, "the optimizer gets no name there")


def created(context: Context) -> tuple[Draft, ast.Call]:
    if not context.measurement.optimizer.given:
        raise Unwritable("the source creates no optimizer: gradcheck assumed one")
    if context.measurement.loop is not None and context.measurement.loop.by_hand:
        raise Unwritable("the weights are updated by hand: there is no optimizer to set")
    return context.call_at(context.measurement.optimizer.site, "the optimizer")


def spelled_there(context: Context, *names: str) -> list[str]:
    """Names of torch as the file that makes the optimizer spells them."""
    return [spelled(created(context)[0], name) for name in names]


def define(context: Context, name: str, code: str) -> None:
    """A function or class before the top-level statement that makes the optimizer."""
    draft, call = created(context)
    if defined(draft, name) is not None:
        raise Unwritable("the source has it already")
    insert_definition(draft, call, code)


def keyword(context: Context, name: str, value: str) -> None:
    set_argument(*created(context), name, value)


def own_values(draft: Draft, call: ast.Call, name: str) -> list[ast.expr]:
    """The values that parameter groups, written as dictionaries, give to a setting."""
    found = []
    for group in _groups(draft, call):
        if isinstance(group, ast.Dict):
            found += [v for k, v in zip(group.keys, group.values, strict=True) if isinstance(k, ast.Constant) and k.value == name]
        elif isinstance(group, ast.Call) and called(group) == "dict":
            found += [k.value for k in group.keywords if k.arg == name]
    return found


def _groups(draft: Draft, call: ast.Call) -> list[ast.expr]:
    """The items of the list that the optimizer is given; none where it is given something else."""
    given = argument(call, "params", 0)
    listed = assigned(draft, given) if isinstance(given, ast.Name) else given
    return listed.elts if isinstance(listed, (ast.List, ast.Tuple)) else []


WRITERS: dict[str, Writer] = {
    "adaptive-optimizer": adam,
    "lower-learning-rate": rate,
    "raise-learning-rate": rate,
    "adam-epsilon": epsilon,
    "lower-momentum": momentum,
    "weaker-weight-decay": decay,
    "decoupled-weight-decay": decoupled,
    "weight-decay-groups": groups,
}
