"""Treatments of places that let no gradient through: step functions, and untrained scales of zero."""

import ast
import types
from collections.abc import Iterator

import torch
from torch import nn

from gradcheck.analysis.wording import counted
from gradcheck.remedies.definition import wiring
from gradcheck.remedies.editing.context import Context, Writer, word
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.names import original, spelled
from gradcheck.remedies.editing.nodes import Function, argument, called, dotted, every, function_of, names_in, remove_argument, statement_of
from gradcheck.remedies.editing.statements import indent_of, line_start
from gradcheck.remedies.layer_selection import listed
from gradcheck.remedies.modules.rewriting import Substitute, operand, rewrite
from gradcheck.remedies.modules.surgery import join, module_at, rewired
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import ZeroDerivative
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

_INPUT = "_gradcheck_input"


def _at_finding(finding: Finding | None, m: Measurement) -> list[ZeroDerivative]:
    known = finding is not None and finding.code == "GRAD004" and finding.location is not None
    return [z for z in m.zero_derivatives if known and finding is not None and z.site == finding.location]


# --------------------------------------------------------------------------- straight-through


@wiring(
    "straight-through",
    "a derivative for a step function",
    "Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons; Hubara et al. 2016, Binarized Neural Networks",
)
def straight_through(finding: Finding | None, m: Measurement) -> list[Fix]:
    steps = [z for z in _at_finding(finding, m) if not z.factor]
    if not steps:
        return []
    operation = steps[0].operation
    settings: dict[str, Setting] = {"operation": operation}
    text = f"torch.{operation} keeps its values and gets the derivative of {'clamp(-1, 1)' if operation == 'sign' else 'the identity'}"
    return [straight_through.fix(text, finding, layers=finding.layers if finding is not None else (), settings=settings)]


@straight_through.applies
def pass_through(treated: TreatedWorkload, p: Fix) -> None:
    sign = p.settings["operation"] == "sign"
    rewrite(treated, p.location, lambda node, function: straight(node, function, sign=sign))


def straight(call: ast.expr, function: types.FunctionType, *, sign: bool) -> ast.expr | None:
    """smooth(z) + (step(z) - smooth(z)).detach(): the values of the step, the derivative of the smooth function."""
    z = operand(call, function)
    if z is None or not isinstance(call, ast.Call):
        return None
    read = ast.Name(_INPUT, ast.Load())
    step = Substitute({z: read}).visit(call)
    first: ast.expr = ast.NamedExpr(ast.Name(_INPUT, ast.Store()), z)
    if sign:
        first, smooth = _clamped(first), _clamped(read)
    else:
        smooth = read
    rest = ast.Call(ast.Attribute(ast.BinOp(step, ast.Sub(), smooth), "detach", ast.Load()), [], [])
    return ast.BinOp(first, ast.Add(), rest)


def _clamped(x: ast.expr) -> ast.expr:
    low = ast.UnaryOp(ast.USub(), ast.Constant(1))
    return ast.Call(ast.Attribute(x, "clamp", ast.Load()), [low, ast.Constant(1)], [])


# ---------------------------------------------------------------------------- trainable-scale


@wiring(
    "trainable-scale",
    "a scale that is trained",
    "Bachlechner et al. 2021, ReZero is All You Need",
    applicability="unsafe",
    checkpoint="keys of buffers stay, those of plain tensors are added; saved optimizer states do not load",
)
def trainable_scale(finding: Finding | None, m: Measurement) -> list[Fix]:
    factors = tuple(dict.fromkeys(z.factor for z in _at_finding(finding, m) if z.factor))
    if not factors:
        return []
    text = f"train {counted(len(factors), 'scale')} that {'is' if len(factors) == 1 else 'are'} 0 and fixed: {', '.join(factors[:3])}"
    settings: dict[str, Setting] = {"factors": listed(factors)}
    owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name in factors))
    return [trainable_scale.fix(text, finding, layers=owners, settings=settings)]


@trainable_scale.applies
def train_scales(treated: TreatedWorkload, p: Fix) -> None:
    """Buffers, plain tensors and frozen parameters become trainable ones, with the values that they have."""
    with rewired(treated):
        for name in str(p.settings["factors"]).split(","):
            _train(treated, name)
        join(treated, treated.model.parameters())


def _train(treated: TreatedWorkload, name: str) -> None:
    holder, _, local = name.rpartition(".")
    module = module_at(treated, holder)
    value = getattr(module, local, None)
    if isinstance(value, nn.Parameter):
        value.requires_grad_(True)
    elif isinstance(value, torch.Tensor) and value.is_floating_point():
        delattr(module, local)
        setattr(module, local, nn.Parameter(value.detach().clone()))
    else:
        raise Inapplicable(f"{name} is not a tensor of floating-point numbers")


REMEDIES = (straight_through, trainable_scale)


# ------------------------------------------------------------------------------ write_straight-through


def write_straight(p: Fix, context: Context) -> None:
    """`x = torch.round(x)` becomes `x = x + (torch.round(x) - x).detach()`; an operand without a name gets one first."""
    draft, call = context.call_at(p.location)
    z, function = _operand(draft, call), function_of(draft, call)
    if z is None or function is None:
        raise draft.refusal(call, f"it is not plain what torch.{word(p, 'operation')} is applied to")
    form = ".clamp(-1, 1)" if word(p, "operation") == "sign" else ""
    statement = statement_of(draft, call)
    if isinstance(z, ast.Name):
        edits, first, name = [], z.id, z.id
    elif isinstance(statement, (ast.Assign, ast.Return)) and statement.value is call and _first_on_line(draft, statement):
        first = name = _name(function, statement)
        start = draft.span(statement)[0]
        line_end = draft.document.newline + indent_of(draft, statement)
        edits = [Edit(start, start, f"{name} = {draft.source(z)}{line_end}")]
    else:
        name = _name(function)
        edits, first = [], f"({name} := {draft.source(z)})"
    text = f"{first}{form} + ({_applied(draft, call, z, name)} - {name}{form}).detach()"
    draft.edit([*edits, Edit(*draft.span(call), text if _stands_alone(draft, call) else f"({text})")])


def _operand(draft: Draft, call: ast.Call) -> ast.expr | None:
    """z of torch.round(z) and z.round()."""
    if isinstance(call.func, ast.Attribute) and original(draft, dotted(call.func.value)).split(".")[0] != "torch":
        return call.func.value
    return argument(call, "input", 0)


def _applied(draft: Draft, call: ast.Call, z: ast.expr, name: str) -> str:
    """The call with a name in place of its operand."""
    start, end = draft.span(call)
    first, last = draft.span(z)
    before, after = draft.text[start:first], draft.text[last:end]
    if before == "(" and after.startswith(")"):
        before, after = "", after[1:]  # (a + b).round()
    return before + name + after


def _first_on_line(draft: Draft, statement: ast.stmt) -> bool:
    start = draft.span(statement)[0]
    return not draft.text[line_start(draft.text, start) : start].strip()


def _name(function: Function, statement: ast.stmt | None = None) -> str:
    """The name that the statement assigns anyway; else one that the function does not use."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    taken = names_in(function) | {a.arg for a in every(function, ast.arg)}
    return next(n for n in ("z", *(f"z{i}" for i in range(1, 1000))) if n not in taken)


def _stands_alone(draft: Draft, call: ast.Call) -> bool:
    """Whether a sum may stand there without brackets."""
    parent = draft.parent(call)
    return isinstance(parent, (ast.stmt, ast.Call, ast.keyword, ast.Tuple, ast.List))


# ------------------------------------------------------------------------------- trainable-scale


def trainable(p: Fix, context: Context) -> None:
    """`self.register_buffer("scale", x)` and `self.scale = x` become `self.scale = nn.Parameter(x)`."""
    for kind, local in sorted({_definition(context, name) for name in word(p, "factors").split(",")}):
        found = [draft for draft in context.all_drafts() for _ in _given(draft, kind, local)]
        if len(found) != 1:
            raise Unwritable(f"{kind}.{local} is set {'in several places' if found else 'outside of your files'}")
        parameter = spelled(found[0], "torch.nn.Parameter")
        _write_train(found[0], next(_given(found[0], kind, local)), local, parameter)


def _definition(context: Context, name: str) -> tuple[str, str]:
    """Class and attribute of a path: ("Block", "scale") for "blocks.0.scale"."""
    holder, _, local = name.rpartition(".")
    return context.layer(holder).type, local


def _given(draft: Draft, kind: str, local: str) -> Iterator[ast.Call | ast.Assign | ast.AnnAssign]:
    """The statements or calls of a class that set an attribute of self."""
    classes = [n for n in every(draft.tree, ast.ClassDef) if n.name == kind]
    for node in (n for one in classes for n in ast.walk(one)):
        if isinstance(node, ast.Call) and called(node) in ("register_buffer", "register_parameter"):
            name = argument(node, "name", 0)
            if isinstance(name, ast.Constant) and name.value == local:
                yield node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Attribute) and t.attr == local and dotted(t.value) == "self" for t in targets):
                yield node


def _write_train(draft: Draft, node: ast.Call | ast.Assign | ast.AnnAssign, local: str, parameter: str) -> None:
    value = argument(node, "tensor", 1) if isinstance(node, ast.Call) else node.value
    if value is None or (isinstance(node, ast.Call) and called(node) != "register_buffer"):
        raise draft.refusal(node, f"it is not plain what {local} is")
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Attribute)
        draft.replace(node, f"{draft.source(node.func.value)}.{local} = {parameter}({draft.source(value)})")
    elif called(value) == "Parameter" and isinstance(value, ast.Call):
        remove_argument(draft, value, "requires_grad")
    else:
        draft.replace(value, f"{parameter}({draft.source(value)})")


WRITERS: dict[str, Writer] = {"straight-through": write_straight, "trainable-scale": trainable}
