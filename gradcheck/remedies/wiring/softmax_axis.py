"""A softmax that goes over the wrong axis."""

import ast
import types

from torch import nn

from gradcheck.remedies.definition import RemedyDefinition, wiring
from gradcheck.remedies.modules.rewriting import expression, operand, rewrite
from gradcheck.remedies.modules.surgery import module_at
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.losses import Softmax
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload


def fix_dimension(treated: TreatedWorkload, fix: Fix) -> None:
    """Lets a softmax go over another axis: an attribute of the module, or an argument of the call."""
    dim = int(fix.settings["dim"])
    for name in fix.layers:
        module = module_at(treated, name)
        if isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin)):
            module.dim = dim
            return

    def edit(node: ast.expr, function: types.FunctionType) -> ast.expr | None:
        if not isinstance(node, ast.Call) or operand(node, function) is None:
            return None
        method = isinstance(node.func, ast.Attribute) and operand(node, function) is node.func.value
        place = 0 if method else 1  # of a positional `dim`
        value = expression(str(dim))
        if len(node.args) > place:
            return ast.Call(node.func, [*node.args[:place], value, *node.args[place + 1 :]], node.keywords)
        others = [k for k in node.keywords if k.arg not in ("dim", "axis")]
        return ast.Call(node.func, node.args, [*others, ast.keyword("dim", value)])

    rewrite(treated, fix.location, edit)


def propose_dimension(treatment: RemedyDefinition, finding: Finding | None, m: Measurement) -> list[Fix]:
    """The class axis: 1 for [N, C] and for a loss that takes it there, else the last one."""
    if finding is None:
        return []
    softmax = next((s for s in m.softmaxes if _meant(s, finding, m)), None)
    if softmax is None:
        return []
    shape = softmax.shape
    dim = 1 if len(shape) == 2 or not softmax.over_batch else -1
    if shape[softmax.axis] == 1:
        dim = max(range(len(shape)), key=lambda i: (i > 0) * shape[i])
    name = "log_softmax" if softmax.log else "softmax"
    text = f"let {name} go over axis {dim} of {list(shape)} instead of axis {softmax.axis}"
    return [treatment.fix(text, finding, layers=(softmax.layer,), settings={"dim": dim})]


def _meant(s: Softmax, finding: Finding, m: Measurement) -> bool:
    layer = m.layer(s.layer)
    site = s.site or (layer.site if layer else None)
    return s.layer in finding.layers and (finding.location is None or site == finding.location)


def _other_axis(name: str, title: str) -> RemedyDefinition:
    @wiring(name, title, "PyTorch documentation, torch.nn.functional.softmax", applicability="unsafe")
    def other(finding: Finding | None, m: Measurement) -> list[Fix]:
        return propose_dimension(other, finding, m)

    other.applies(fix_dimension)
    return other


REMEDIES = (_other_axis("fix-softmax-dimension", "softmax over the classes"), _other_axis("other-axis", "softmax over features"))
