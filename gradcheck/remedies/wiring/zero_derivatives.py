"""Treatments of places that let no gradient through: step functions, and untrained scales of zero."""

import ast
import types
from typing import Any

import torch
from torch import nn

from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.layer_selection import listed, several
from gradcheck.remedies.modules.rewriting import operand, rewrite
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


def propose_straight(finding: Finding | None, m: Measurement) -> list[Fix]:
    steps = [z for z in _at_finding(finding, m) if not z.factor]
    if not steps:
        return []
    operation = steps[0].operation
    settings: dict[str, Setting] = {"operation": operation}
    text = f"torch.{operation} keeps its values and gets the derivative of {'clamp(-1, 1)' if operation == 'sign' else 'the identity'}"
    return [STRAIGHT.fix(text, finding, layers=finding.layers if finding is not None else (), settings=settings)]


def pass_through(treated: TreatedWorkload, p: Fix) -> None:
    sign = p.settings["operation"] == "sign"
    rewrite(treated, p.location, lambda node, function: straight(node, function, sign=sign))


def straight(call: ast.expr, function: types.FunctionType, *, sign: bool) -> ast.expr | None:
    """smooth(z) + (step(z) - smooth(z)).detach(): the values of the step, the derivative of the smooth function."""
    z = operand(call, function)
    if z is None or not isinstance(call, ast.Call):
        return None
    read = ast.Name(_INPUT, ast.Load())
    step = _With(z, read).visit(call)
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


class _With(ast.NodeTransformer):
    """Puts one expression in place of another, which is known by identity."""

    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


# ---------------------------------------------------------------------------- trainable-scale


def propose_trainable(finding: Finding | None, m: Measurement) -> list[Fix]:
    factors = tuple(dict.fromkeys(z.factor for z in _at_finding(finding, m) if z.factor))
    if not factors:
        return []
    text = f"train {several(len(factors), 'scale')} that {'is' if len(factors) == 1 else 'are'} 0 and fixed: {', '.join(factors[:3])}"
    settings: dict[str, Setting] = {"factors": listed(factors)}
    owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name in factors))
    return [TRAINABLE.fix(text, finding, layers=owners, settings=settings)]


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


STRAIGHT = RemedyDefinition(
    "straight-through",
    "a derivative for a step function",
    "wiring",
    "safe",
    "Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons; Hubara et al. 2016, Binarized Neural Networks",
    propose_straight,
    pass_through,
)
TRAINABLE = RemedyDefinition(
    "trainable-scale",
    "a scale that is trained",
    "wiring",
    "unsafe",
    "Bachlechner et al. 2021, ReZero is All You Need",
    propose_trainable,
    train_scales,
    "keys of buffers stay, those of plain tensors are added; saved optimizer states do not load",
)

REMEDIES = (STRAIGHT, TRAINABLE)
