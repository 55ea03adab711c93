"""What the training does not reach: modules in plain lists, parameters outside the optimizer, cut gradients; wrong axes."""

import ast
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gradcheck.analysis.wording import counted
from gradcheck.remedies.definition import RemedyDefinition, wiring
from gradcheck.remedies.modules.rewriting import expression, operand, rewrite, rewrite_method
from gradcheck.remedies.modules.surgery import join, module_at, remove_parameters, rewired
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.losses import Softmax
from gradcheck.types.measurement import Measurement
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

NO_GRADIENT = ("no_grad", "inference_mode")
CUTS = {"detach": "detach()", "data": ".data", "no_grad": "torch.no_grad()"}  # those that an edit takes away exactly
SEQUENCES = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

# -------------------------------------------------------------------------- register-modules


@wiring(
    "register-modules",
    "hidden modules registered",
    "PyTorch documentation, torch.nn.ModuleList",
    applicability="unsafe",
    checkpoint="keys are added: checkpoints of before lack these weights, which were never trained",
)
def register_modules(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or not m.hidden:
        return []
    holders = dict.fromkeys(h.name.partition("[")[0] for h in m.hidden if h.name)
    text = f"hold {', '.join(holders) or 'them'} in an nn.ModuleList, nn.ModuleDict or nn.Parameter: {counted(len(m.hidden), 'tensor')} "
    return [register_modules.fix(f"{text}join the model and the optimizer", finding, layers=tuple(holders))]


@register_modules.applies
def register(treated: TreatedWorkload, fix: Fix) -> None:
    """Plain lists and dicts of modules become ModuleList and ModuleDict, plain tensors parameters; all join the optimizer."""
    before = len(list(treated.model.parameters()))
    with rewired(treated):
        while any(_register_in(module) for module in list(treated.model.modules())):
            pass  # from the top again: what was hidden may hide more
        join(treated, treated.model.parameters())
    if len(list(treated.model.parameters())) == before:
        raise Inapplicable("no plain list, dict or tensor of the model's modules holds them")


def _register_in(module: nn.Module) -> bool:
    changed = False
    for name, value in list(vars(module).items()):
        if name in ("_modules", "_parameters", "_buffers") or name.startswith(("_forward", "_backward", "_state_dict", "_load_state")):
            continue
        new = registered(value)
        if new is not None:
            delattr(module, name)
            setattr(module, name, new)
            changed = True
    return changed


def registered(value: Any) -> nn.Module | nn.Parameter | None:
    """The form of a plain attribute that torch registers; None for what holds nothing to register."""
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) and value.requires_grad and value.is_leaf:
        return nn.Parameter(value.detach())
    if isinstance(value, (list, tuple)) and value:
        if all(isinstance(item, nn.Module) for item in value):
            return nn.ModuleList(value)
        if all(isinstance(item, torch.Tensor) and item.requires_grad and item.is_leaf for item in value):
            return nn.ParameterList(value)
    if isinstance(value, Mapping) and value and all(isinstance(key, str) and "." not in key for key in value):
        if all(isinstance(item, nn.Module) for item in value.values()):
            return nn.ModuleDict(value)
        if all(isinstance(item, nn.Parameter) for item in value.values()):
            return nn.ParameterDict(value)
    return None


# -------------------------------------------------------------------------- add-to-optimizer


@wiring(
    "add-to-optimizer",
    "all parameters in the optimizer",
    "PyTorch documentation, torch.optim, Constructing it",
    checkpoint="model checkpoints still load; saved optimizer states do not",
)
def add_to_optimizer(finding: Finding | None, m: Measurement) -> list[Fix]:
    missing = [p for p in m.parameters if p.trainable and p.used and p.groups == 0]
    if finding is None or not m.optimizer.given:
        return []
    text = f"give the optimizer the {counted(len(missing), 'tensor')} that it lacks" if missing else "put every parameter into one group"
    if m.optimizer.stale:
        text = "build the optimizer after the last change of the model"
    if not any(p.groups for p in m.parameters):
        text = "give the optimizer the parameters of the model: it holds none of them"
    return [add_to_optimizer.fix(text, finding, layers=tuple(dict.fromkeys(p.layer for p in missing)))]


@add_to_optimizer.applies
def apply_add_to_optimizer(treated: TreatedWorkload, fix: Fix) -> None:
    """Every trainable parameter in one group; tensors that the model does not have leave."""
    listed = {id(p) for p in treated.model.parameters()}
    held = [p for group in treated.optimizer.param_groups for p in group["params"]]
    remove_parameters(treated, {id(p) for p in held} - listed)
    seen: set[int] = set()
    for group in treated.optimizer.param_groups:
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in seen]
        for key in [k for k in ("params", "param_names") if k in group]:
            group[key] = [group[key][i] for i in kept]
        seen |= {id(p) for p in group["params"]}
    join(treated, treated.model.parameters())


# ----------------------------------------------------------------------------- remove-detach


@wiring(
    "remove-detach",
    "the gradient let through",
    "PyTorch documentation, Autograd mechanics: locally disabling gradient computation",
    applicability="unsafe",
)
def remove_detach(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or finding.code != "GRAPH001":
        return []
    cut = next((c for c in m.cuts if c.operation in CUTS and not c.in_package and c.site == finding.location), None)
    if cut is None:
        return []
    text = f"remove {CUTS[cut.operation]}: {counted(len(cut.parameters), 'tensor')} before it then get a gradient"
    layers = tuple(dict.fromkeys(name.rpartition(".")[0] for name in cut.parameters))
    return [remove_detach.fix(text, finding, layers=layers, settings={"operation": cut.operation})]


@remove_detach.applies
def remove_cut(treated: TreatedWorkload, fix: Fix) -> None:
    """Takes away detach(), .data or no_grad() at its place in a module's code."""
    if fix.settings["operation"] == "no_grad":
        rewrite_method(treated, fix.location, _with_gradient)
    else:
        rewrite(treated, fix.location, _uncut)
    _require_gradient(treated, fix.layers)


def _require_gradient(treated: TreatedWorkload, layers: Sequence[str]) -> None:
    """Raises Inapplicable when no gradient reaches these layers even so: it may be cut in a second place."""
    with preserve_rng():
        twin = treated.copy()
    parameters = [p for name in layers for p in module_at(twin, name).parameters(recurse=False) if p.requires_grad]
    try:
        with preserve_rng():
            loss = twin.workload.training_step(twin.model, twin.workload.batches[0])
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:
        raise Inapplicable(f"the training step does not run without it: {error}") from error
    if all(g is None for g in found):
        raise Inapplicable("the gradient is cut in another place too")


def _uncut(node: ast.expr, function: types.FunctionType) -> ast.expr | None:
    if isinstance(node, ast.Attribute) and node.attr == "data":
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("detach", "detach_"):
        return operand(node, function)
    return None


def _with_gradient(tree: ast.FunctionDef) -> ast.FunctionDef | None:
    """Without decorators and `with` blocks that switch the gradient off."""
    kept = [d for d in tree.decorator_list if not _switches_off(d)]
    opener = _Opener()
    changed = len(kept) < len(tree.decorator_list)
    tree.decorator_list = kept
    tree = opener.visit(tree)
    return tree if changed or opener.hits else None


def _switches_off(node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else node
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in NO_GRADIENT


class _Opener(ast.NodeTransformer):
    def __init__(self) -> None:
        self.hits = 0

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        kept = [item for item in node.items if not _switches_off(item.context_expr)]
        self.hits += len(kept) < len(node.items)
        node.items = kept
        return node if kept else node.body


# --------------------------------------------------------------------------------- batch-first


@wiring(
    "batch-first",
    "samples on the first axis",
    "PyTorch documentation, torch.nn.LSTM: batch_first",
    applicability="unsafe",
    checkpoint="keys stay the same, but weights trained across samples mean something else",
)
def batch_first(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or not finding.layers or finding.layers == ("",):
        return []
    text = f"create {', '.join(finding.layers)} with batch_first=True: samples are on the first axis"
    return [batch_first.fix(text, finding, layers=finding.layers)]


@batch_first.applies
def apply_batch_first(treated: TreatedWorkload, fix: Fix) -> None:
    """batch_first=True on recurrent layers, attention, and torch's transformer blocks."""
    with rewired(treated):
        for name in fix.layers:
            inside = [x for x in module_at(treated, name).modules() if isinstance(x, SEQUENCES) and hasattr(x, "batch_first")]
            if not inside:
                raise Inapplicable(f"{name or 'the model'} has no layer of torch with batch_first")
            for layer in inside:
                vars(layer)["batch_first"] = True


# ------------------------------------------------------------------------------- softmax


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


REMEDIES = (
    register_modules,
    add_to_optimizer,
    remove_detach,
    batch_first,
    _other_axis("fix-softmax-dimension", "softmax over the classes"),
    _other_axis("other-axis", "softmax over features"),
)
