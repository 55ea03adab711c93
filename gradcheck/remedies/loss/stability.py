"""Treatments of losses and layers that are written so that they leave the range of floating-point numbers."""

import ast
import functools
import types
from collections.abc import Callable

from gradcheck.remedies.definition import RemedyDefinition
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


def propose_stable(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or finding.location is None:
        return []
    call = next((o for o in m.loss_operations if o.site == finding.location), None)
    remedy = next((r.text for r in finding.remedies if r.name == "stable-loss"), "write it in a form that cannot leave the range")
    settings: dict[str, Setting] = {"operation": call.operation, "of": call.of} if call is not None else {}
    return [STABLE.fix(remedy, finding, layers=finding.layers, settings=settings)]


def stabilise(treated: TreatedWorkload, p: Fix) -> None:
    edit_code(treated, p.location, functools.partial(stable_form, str(p.settings.get("of", "other"))))


def propose_guard(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or finding.location is None:
        return []
    remedy = next((r for r in finding.remedies if r.name == "guard-domain"), None)
    text = remedy.text if remedy is not None else "keep the argument inside the function's domain"
    return [GUARD.fix(text, finding, layers=finding.layers)]


def guard(treated: TreatedWorkload, p: Fix) -> None:
    edit_code(treated, p.location, guarded)


STABLE = RemedyDefinition(
    "stable-loss",
    "loss in a stable form",
    "loss",
    "safe",
    "Blanchard et al. 2021, Accurately computing the log-sum-exp and softmax functions",
    propose_stable,
    stabilise,
)
GUARD = RemedyDefinition(
    "guard-domain",
    "argument kept inside the domain",
    "loss",
    "unsafe",
    "Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 1",
    propose_guard,
    guard,
)

REMEDIES = (STABLE, GUARD)
