"""Treatments of losses and layers that are written so that they leave the range of floating-point numbers."""

import ast
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass

from gradcheck.remedies.definition import of_loss
from gradcheck.remedies.editing.context import Context, Writer, word
from gradcheck.remedies.editing.names import original, written
from gradcheck.remedies.editing.nodes import argument, called, dotted
from gradcheck.remedies.modules.rewriting import expression, torch_function
from gradcheck.remedies.modules.user_code import edit_code
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload

SMALL, SHIFT = 1e-8, 1e-6
NAMESPACES = ("torch", "F", "functional", "nn.functional", "torch.nn.functional", "torch.special")  # by convention

# How an argument is kept clear of where the function, or its derivative, is not finite.
GUARDS = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "pow", "reciprocal"), f"clamp_min({SMALL})"),
    **dict.fromkeys(("acos", "asin", "arccos", "arcsin", "atanh", "arctanh"), "clamp(-1 + 1e-6, 1 - 1e-6)"),
    **dict.fromkeys(("exp", "expm1", "cosh", "sinh"), "clamp_max(20.0)"),
}


@dataclass(frozen=True)
class Forms:
    """Other forms of an expression, which stay inside the range of numbers; None for one that is not known to be mended.

    `is_module`: tells torch.softmax(z, 1) from z.softmax(1) by what stands before the dot.
    """

    is_module: Callable[[ast.expr], bool]

    def stable(self, of: str, node: ast.expr) -> ast.expr | None:
        """The same value, computed without leaving the range: log_softmax for log(softmax), and so on.

        `of`: what the argument is, as in LossOperation. A layer's output is made positive, which changes the value.
        """
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return self._stable_division(node)
        inner = self._argument(node, "log")
        if inner is None:
            return None
        return torch_function("log", _positive(inner)) if of == "output" else self._stable_log(inner) or self.guarded(node)

    def _stable_log(self, x: ast.expr) -> ast.expr | None:
        """Of log(x); None for an x that was computed before."""
        if (z := self._argument(x, "softmax")) is not None:
            return self._call("nn.functional.log_softmax", z, x)
        if (z := self._argument(x, "sigmoid")) is not None:
            return torch_function("nn.functional.logsigmoid", z)
        if isinstance(x, ast.BinOp) and isinstance(x.left, ast.Constant) and x.left.value == 1:
            if isinstance(x.op, ast.Sub) and (z := self._argument(x.right, "sigmoid")) is not None:
                return torch_function("nn.functional.logsigmoid", ast.UnaryOp(ast.USub(), z))
            if isinstance(x.op, ast.Add) and (z := self._argument(x.right, "exp")) is not None:
                return torch_function("nn.functional.softplus", z)
        if (z := self._argument(self._argument(x, "sum"), "exp")) is not None:
            return self._call("logsumexp", z, x)
        return None

    def _stable_division(self, node: ast.BinOp) -> ast.expr:
        top, bottom = self._argument(node.left, "exp"), self._argument(self._argument(node.right, "sum"), "exp")
        if top is not None and bottom is not None and ast.dump(top) == ast.dump(bottom):
            return self._call("softmax", top, node.right, without=("input", "keepdim"))
        return ast.BinOp(node.left, ast.Div(), _positive(node.right))

    def guarded(self, node: ast.expr) -> ast.expr | None:
        """The expression with its argument kept clear of where the function, or its derivative, is not finite."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return ast.BinOp(node.left, ast.Div(), ast.BinOp(node.right, ast.Add(), ast.Constant(SHIFT)))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            return ast.BinOp(_method_of(node.left, GUARDS["pow"]), ast.Pow(), node.right)
        guard = GUARDS.get(called(node))
        x = self._argument(node, called(node)) if guard is not None else None
        if x is None or guard is None or not isinstance(node, ast.Call):
            return None
        inside = _method_of(x, guard)
        if self._is_method(node):
            return ast.Call(ast.Attribute(inside, called(node), ast.Load()), node.args, node.keywords)
        return ast.Call(node.func, [inside, *node.args[1:]], [k for k in node.keywords if k.arg != "input"])

    def _argument(self, node: ast.expr | None, name: str) -> ast.expr | None:
        """z of torch.name(z, ...), F.name(z, ...) and z.name(...)."""
        if not isinstance(node, ast.Call) or called(node) != name:
            return None
        if isinstance(node.func, ast.Attribute) and self._is_method(node):
            return node.func.value
        return argument(node, "input", 0)

    def _is_method(self, node: ast.Call) -> bool:
        return isinstance(node.func, ast.Attribute) and not self.is_module(node.func.value)

    def _call(self, path: str, z: ast.expr, like: ast.expr, without: tuple[str, ...] = ("input",)) -> ast.Call:
        """A function of torch of z, with the other arguments of the call `like`."""
        assert isinstance(like, ast.Call)
        call = torch_function(path, z, *(like.args if self._is_method(like) else like.args[1:]))
        call.keywords = [k for k in like.keywords if k.arg not in without]
        return call


def _positive(x: ast.expr) -> ast.expr:
    return ast.BinOp(torch_function("nn.functional.softplus", x), ast.Add(), ast.Constant(SHIFT))


def _method_of(x: ast.expr, call: str) -> ast.expr:
    """x.clamp_min(1e-8) of "clamp_min(1e-8)"."""
    made = expression(call)
    assert isinstance(made, ast.Call)
    return ast.Call(ast.Attribute(x, called(made), ast.Load()), made.args, [])


def _by_convention(holder: ast.expr) -> bool:
    name = ast.unparse(holder)
    return name in NAMESPACES or name.startswith("__import__")  # an edit of ours


_IN_A_COPY = Forms(_by_convention)


def stable_form(of: str, node: ast.expr, _: types.FunctionType) -> ast.expr | None:
    return _IN_A_COPY.stable(of, node)


def guarded(node: ast.expr, _: types.FunctionType) -> ast.expr | None:
    return _IN_A_COPY.guarded(node)


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


def write_stable(p: Fix, context: Context) -> None:
    _write(p, context, lambda forms, node: forms.stable(word(p, "of"), node))


def write_guard(p: Fix, context: Context) -> None:
    _write(p, context, lambda forms, node: forms.guarded(node))


def _write(p: Fix, context: Context, form: Callable[[Forms, ast.expr], ast.expr | None]) -> None:
    draft, node = context.at(p.location)
    new = form(Forms(lambda holder: original(draft, dotted(holder)).split(".")[0] == "torch"), node)
    if new is None:
        raise draft.refusal(node, "the operation is not of a form that is known to be mended")
    draft.replace(node, written(draft, new))


WRITERS: dict[str, Writer] = {"stable-loss": write_stable, "guard-domain": write_guard}
