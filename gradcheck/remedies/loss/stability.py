"""Treatments of losses and layers that are written so that they leave the range of floating-point numbers."""

import ast
import functools
import types
from collections.abc import Callable

from gradcheck.remedies.definition import of_loss
from gradcheck.remedies.editing.context import Context, Writer, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import original, spelled
from gradcheck.remedies.editing.nodes import argument, called, closed, dotted
from gradcheck.remedies.modules.rewriting import torch_function
from gradcheck.remedies.modules.user_code import edit_code
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload

SMALL, SHIFT, LARGEST = 1e-8, 1e-6, 20.0
NAMESPACES = ("torch", "F", "functional", "nn.functional", "torch.nn.functional", "torch.special")  # by convention


# ----------------------------------------------------- other forms of the same function of the outputs


def stable_form(of: str, node: ast.expr, _: types.FunctionType) -> ast.expr | None:
    """The same value, computed without leaving the range: log_softmax for log(softmax), and so on; None for other expressions.

    `of`: what the argument is, as in LossOperation. A layer's output is made positive, which changes the value.
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _stable_division(node)
    inner = _argument(node, "log")
    if inner is None:
        return None
    return torch_function("log", _positive(inner)) if of == "output" else _stable_log(inner)


def _positive(x: ast.expr) -> ast.expr:
    return ast.BinOp(torch_function("nn.functional.softplus", x), ast.Add(), ast.Constant(SHIFT))


def _stable_log(x: ast.expr) -> ast.expr:
    """Of log(x); of an x that was computed before, no smaller than 1e-8."""
    if (z := _argument(x, "softmax")) is not None:
        assert isinstance(x, ast.Call)
        return _call("nn.functional.log_softmax", z, x)
    if (z := _argument(x, "sigmoid")) is not None:
        return torch_function("nn.functional.logsigmoid", z)
    if isinstance(x, ast.BinOp) and isinstance(x.left, ast.Constant) and x.left.value == 1:
        if isinstance(x.op, ast.Sub) and (z := _argument(x.right, "sigmoid")) is not None:
            return torch_function("nn.functional.logsigmoid", ast.UnaryOp(ast.USub(), z))
        if isinstance(x.op, ast.Add) and (z := _argument(x.right, "exp")) is not None:
            return torch_function("nn.functional.softplus", z)
    if (total := _argument(x, "sum")) is not None and (z := _argument(total, "exp")) is not None:
        assert isinstance(x, ast.Call)
        return _call("logsumexp", z, x)
    return torch_function("log", torch_function("clamp_min", x, ast.Constant(SMALL)))


def _stable_division(node: ast.BinOp) -> ast.expr:
    top, total = _argument(node.left, "exp"), _argument(node.right, "sum")
    bottom = _argument(total, "exp") if total is not None else None
    if top is not None and bottom is not None and ast.dump(top) == ast.dump(bottom) and isinstance(node.right, ast.Call):
        keywords = [k for k in node.right.keywords if k.arg != "keepdim"]
        return _call("softmax", top, ast.Call(node.right.func, node.right.args, keywords))
    return ast.BinOp(node.left, ast.Div(), _positive(node.right))


def _argument(node: ast.expr | None, name: str) -> ast.expr | None:
    """z of torch.name(z, ...), F.name(z, ...) and z.name(...)."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
        return None
    if (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id) != name:
        return None
    if _is_method(node):
        assert isinstance(node.func, ast.Attribute)
        return node.func.value
    return node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "input"), None)


def _is_method(node: ast.Call) -> bool:
    """z.softmax(1), not torch.softmax(z, 1): modules go by these names in nearly all code."""
    holder = node.func.value if isinstance(node.func, ast.Attribute) else None
    name = ast.unparse(holder) if holder is not None else ""
    return holder is not None and name not in NAMESPACES and not name.startswith("__import__")  # an edit of ours


def _call(path: str, z: ast.expr, like: ast.Call) -> ast.Call:
    """A function of torch of z, with the other arguments of `like`."""
    call = torch_function(path, z, *(like.args if _is_method(like) else like.args[1:]))
    call.keywords = [k for k in like.keywords if k.arg != "input"]
    return call


# -------------------------------------------------------------------------- kept inside the domain


def guarded(node: ast.expr, _: types.FunctionType) -> ast.expr | None:
    """The expression with its argument kept clear of where the function, or its derivative, is not finite."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return ast.BinOp(node.left, ast.Div(), ast.BinOp(node.right, ast.Add(), ast.Constant(SHIFT)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return ast.BinOp(torch_function("clamp_min", node.left, ast.Constant(SMALL)), ast.Pow(), node.right)
    for name, guard in GUARDS.items():
        x = _argument(node, name)
        if x is not None and isinstance(node, ast.Call):
            return _call(name, guard(x), node)
    return None


def _above_zero(x: ast.expr) -> ast.expr:
    return torch_function("clamp_min", x, ast.Constant(SMALL))


def _inside_one(x: ast.expr) -> ast.expr:
    return torch_function("clamp", x, ast.Constant(-1 + 1e-6), ast.Constant(1 - 1e-6))


def _below_overflow(x: ast.expr) -> ast.expr:
    return torch_function("clamp_max", x, ast.Constant(LARGEST))


GUARDS: dict[str, Callable[[ast.expr], ast.expr]] = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "pow", "reciprocal"), _above_zero),
    **dict.fromkeys(("acos", "asin", "arccos", "arcsin", "atanh", "arctanh"), _inside_one),
    **dict.fromkeys(("exp", "expm1", "cosh", "sinh"), _below_overflow),
}


@of_loss(
    "stable-loss",
    "loss in a stable form",
    "Blanchard et al. 2021, Accurately computing the log-sum-exp and softmax functions",
    applicability="safe",
)
def stable_loss(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or finding.location is None:
        return []
    call = next((o for o in m.loss_operations if o.site == finding.location), None)
    remedy = next((r.text for r in finding.remedies if r.name == "stable-loss"), "write it in a form that cannot leave the range")
    settings: dict[str, Setting] = {"operation": call.operation, "of": call.of} if call is not None else {}
    return [stable_loss.fix(remedy, finding, layers=finding.layers, settings=settings)]


@stable_loss.applies
def stabilise(treated: TreatedWorkload, p: Fix) -> None:
    edit_code(treated, p.location, functools.partial(stable_form, str(p.settings.get("of", "other"))))


@of_loss("guard-domain", "argument kept inside the domain", "Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 1")
def guard_domain(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or finding.location is None:
        return []
    remedy = next((r for r in finding.remedies if r.name == "guard-domain"), None)
    text = remedy.text if remedy is not None else "keep the argument inside the function's domain"
    return [guard_domain.fix(text, finding, layers=finding.layers)]


@guard_domain.applies
def guard(treated: TreatedWorkload, p: Fix) -> None:
    edit_code(treated, p.location, guarded)


REMEDIES = (stable_loss, guard_domain)


SMALL_WRITTEN, SHIFT_WRITTEN, LARGEST_WRITTEN = "1e-8", "1e-6", "20.0"


def stable(p: Fix, context: Context) -> None:
    """The same value, computed without leaving the range of numbers."""
    draft, node = context.at(p.location)
    text = _stable(draft, node, word(p, "of"))
    draft.replace(draft.at(p.location) if p.location is not None else node, text)


def _stable(draft: Draft, node: ast.expr, of: str) -> str:
    """`of`: what the argument is, as in LossOperation. A layer's output is made positive."""

    def functional(name: str, call: ast.Call, value: ast.expr) -> str:
        rest = [draft.source(a) for a in (call.args if _method(draft, call) else call.args[1:])]
        rest += [draft.source(k) for k in call.keywords if k.arg != "input"]
        return f"{spelled(draft, name)}({', '.join([draft.source(value), *rest])})"

    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _stable_ratio(draft, node)
    x = _operand(draft, node, "log")
    if x is None:
        raise Unwritable(f"{draft.path}:{node.lineno}: the operation is not of a form that is known to be mended")
    if of == "output":
        start, end = draft.span(node)
        first, last = draft.span(x)
        positive = f"{spelled(draft, 'torch.nn.functional.softplus')}({draft.source(x)}) + {SHIFT_WRITTEN}"
        if isinstance(node, ast.Call) and _method(draft, node):  # z.log()
            return f"{spelled(draft, 'torch.log')}({positive})"
        return draft.text[start:first] + positive + draft.text[last:end]
    if (z := _operand(draft, x, "softmax")) is not None and isinstance(x, ast.Call):
        return functional("torch.nn.functional.log_softmax", x, z)
    if (z := _operand(draft, x, "sigmoid")) is not None:
        return f"{spelled(draft, 'torch.nn.functional.logsigmoid')}({draft.source(z)})"
    if isinstance(x, ast.BinOp) and isinstance(x.left, ast.Constant) and x.left.value == 1:
        if isinstance(x.op, ast.Sub) and (z := _operand(draft, x.right, "sigmoid")) is not None:
            return f"{spelled(draft, 'torch.nn.functional.logsigmoid')}(-({draft.source(z)}))"
        if isinstance(x.op, ast.Add) and (z := _operand(draft, x.right, "exp")) is not None:
            return f"{spelled(draft, 'torch.nn.functional.softplus')}({draft.source(z)})"
    if (total := _operand(draft, x, "sum")) is not None and (z := _operand(draft, total, "exp")) is not None and isinstance(x, ast.Call):
        return functional("torch.logsumexp", x, z)
    return _guarded(draft, node)


def _stable_ratio(draft: Draft, node: ast.BinOp) -> str:
    top, total = _operand(draft, node.left, "exp"), _operand(draft, node.right, "sum")
    bottom = _operand(draft, total, "exp") if total is not None else None
    if top is not None and bottom is not None and ast.dump(top) == ast.dump(bottom) and isinstance(node.right, ast.Call):
        call = node.right
        rest = [draft.source(a) for a in (call.args if _method(draft, call) else call.args[1:])]
        rest += [draft.source(k) for k in call.keywords if k.arg not in ("input", "keepdim")]
        return f"{spelled(draft, 'torch.softmax')}({', '.join([draft.source(top), *rest])})"
    left, right = closed(draft, node.left), draft.source(node.right)
    return f"{left} / ({spelled(draft, 'torch.nn.functional.softplus')}({right}) + {SHIFT_WRITTEN})"


def write_guard(p: Fix, context: Context) -> None:
    """The argument is kept clear of where the function, or its derivative, is not finite."""
    draft, node = context.at(p.location)
    text = _guarded(draft, node)
    draft.replace(context.at(p.location)[1], text)


def _guarded(draft: Draft, node: ast.expr) -> str:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return f"{closed(draft, node.left)} / ({closed(draft, node.right)} + {SHIFT_WRITTEN})"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return f"{closed(draft, node.left)}.clamp_min({SMALL_WRITTEN}) ** {closed(draft, node.right)}"
    for names, form in _GUARDS:
        for name in names:
            x = _operand(draft, node, name)
            if x is not None:
                text = closed(draft, x) + form
                start, end = draft.span(x)
                whole = draft.span(node)
                return draft.text[whole[0] : start] + text + draft.text[end : whole[1]]
    raise Unwritable(f"{draft.path}:{node.lineno}: the operation is not of a form that is known to be mended")


_GUARDS = (
    (("log", "log2", "log10", "sqrt", "rsqrt", "pow", "reciprocal"), f".clamp_min({SMALL_WRITTEN})"),
    (("acos", "asin", "arccos", "arcsin", "atanh", "arctanh"), ".clamp(-1 + 1e-6, 1 - 1e-6)"),
    (("exp", "expm1", "cosh", "sinh"), f".clamp_max({LARGEST_WRITTEN})"),
)


def _operand(draft: Draft, node: ast.expr | None, name: str) -> ast.expr | None:
    """z of torch.name(z), F.name(z) and z.name()."""
    if not isinstance(node, ast.Call) or called(node) != name:
        return None
    if _method(draft, node):
        assert isinstance(node.func, ast.Attribute)
        return node.func.value
    return argument(node, "input", 0)


def _method(draft: Draft, call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    holder = dotted(call.func.value)
    return not (holder and original(draft, holder).split(".")[0] == "torch")


WRITERS: dict[str, Writer] = {"stable-loss": stable, "guard-domain": write_guard}
