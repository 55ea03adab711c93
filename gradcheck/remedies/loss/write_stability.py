"""Losses and layers in forms that stay inside the range of numbers."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import original, spelled
from gradcheck.remedies.editing.nodes import argument, called, closed, dotted
from gradcheck.types.fix import Fix

SMALL, SHIFT, LARGEST = "1e-8", "1e-6", "20.0"


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
        positive = f"{spelled(draft, 'torch.nn.functional.softplus')}({draft.source(x)}) + {SHIFT}"
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
    return f"{left} / ({spelled(draft, 'torch.nn.functional.softplus')}({right}) + {SHIFT})"


def guard(p: Fix, context: Context) -> None:
    """The argument is kept clear of where the function, or its derivative, is not finite."""
    draft, node = context.at(p.location)
    text = _guarded(draft, node)
    draft.replace(context.at(p.location)[1], text)


def _guarded(draft: Draft, node: ast.expr) -> str:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return f"{closed(draft, node.left)} / ({closed(draft, node.right)} + {SHIFT})"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return f"{closed(draft, node.left)}.clamp_min({SMALL}) ** {closed(draft, node.right)}"
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
    (("log", "log2", "log10", "sqrt", "rsqrt", "pow", "reciprocal"), f".clamp_min({SMALL})"),
    (("acos", "asin", "arccos", "arcsin", "atanh", "arctanh"), ".clamp(-1 + 1e-6, 1 - 1e-6)"),
    (("exp", "expm1", "cosh", "sinh"), f".clamp_max({LARGEST})"),
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


WRITERS: dict[str, Writer] = {"stable-loss": stable, "guard-domain": guard}
