"""The loss that fits the output, in place of one that does not."""

import ast
import functools
import inspect
import math
import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.definition import Settings, of_loss
from gradcheck.remedies.modules.rewriting import operand, torch_function
from gradcheck.remedies.modules.user_code import Map, edit_code, map_output, require_target
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.workload.step import classes_are_last, first_tensor
from gradcheck.workload.treated import TreatedWorkload, replaced, tensor_at
from gradcheck.workload.workload import Batch

CLASS_LOSSES = ("cross_entropy", "nll_loss")
LOG_LOSSES = ("kl_div", "ctc_loss")  # of log-probabilities, with nothing to take in their place
_LOGARITHMS = {"softmax": "log_softmax", "sigmoid": "logsigmoid"}


@of_loss("replace-loss", "loss that fits the output", "Goodfellow et al. 2016, Deep Learning, section 6.2.2")
def replace_loss(finding: Finding | None, m: Measurement) -> list[Fix]:
    for call in m.losses:
        settings = _fitting(call) or (_coerced(call) if call.raised else None)
        if settings is not None and (finding is None or finding.location in (None, call.site, call.producer_site) or len(m.losses) == 1):
            if call.producer in _LOGARITHMS and not call.producer_layer:
                settings["in_code"] = True  # in the forward method or the loop, not in a layer
            return [replace_loss.fix(_loss_words(settings), finding, settings=settings)]
    return []


def _fitting(call: LossCall) -> dict[str, Setting] | None:
    """What the loss is, what it is to be, and what of the output's activation it sees."""
    loss, producer = call.function, call.producer or ""
    if loss in LOG_LOSSES:
        return {"old": loss, "new": loss, "function": producer if producer in _LOGARITHMS else ""}
    new: str | None = None
    if loss in CLASS_LOSSES and call.classes == 1:
        new = "binary_cross_entropy_with_logits"
    elif loss == "nll_loss" and producer != "log_softmax":
        new = "cross_entropy"
    elif loss == "cross_entropy" and producer == "softmax":
        new = "nll_loss"
    elif loss == "binary_cross_entropy_with_logits" and producer == "sigmoid":
        new = "binary_cross_entropy"
    elif loss == "binary_cross_entropy" and (call.input_min < 0 or call.input_max > 1):
        new = "binary_cross_entropy_with_logits"
    if new is None:
        return None
    function = "softmax" if producer == "softmax" or (loss == "nll_loss" and _is_distribution(call)) else producer
    return {"old": loss, "new": new, "function": function, "classes": call.classes or 0}


def _is_distribution(call: LossCall) -> bool:
    return call.input_min >= 0 and call.row_sum_error is not None and call.row_sum_error <= 1e-4


def _coerced(call: LossCall) -> dict[str, Setting] | None:
    """For a call that raises: the target's type and shape that the loss takes."""
    integer = not call.target_dtype.startswith(("float", "bfloat"))
    if call.function in CLASS_LOSSES and call.target_kind != "none" and len(call.target_shape) in (1, 2):
        labels = call.target_shape in ((call.input_shape[0],), (call.input_shape[0], 1))
        return {"old": call.function, "new": call.function, "target": "long", "function": ""} if labels else None
    if integer or math.prod(call.target_shape) == math.prod(call.input_shape):
        return {"old": call.function, "new": call.function, "target": "float", "function": ""}
    return None


def _loss_words(s: Settings) -> str:
    if s.get("target") == "long":
        return f"give {s['old']} class labels: target.long(), with one axis"
    if s.get("target") == "float":
        return f"give {s['old']} targets of the output's type and shape"
    if s["old"] == "cross_entropy" and s["new"] == "nll_loss":
        return "take log_softmax in place of softmax, and nll_loss in place of cross_entropy"
    if s["old"] == s["new"]:
        instead = f"{_LOGARITHMS[str(s['function'])]} in place of {s['function']}" if s["function"] else "log_softmax of the output"
        return f"{s['old']} takes log-probabilities: hand it {instead}"
    without = f", without the {s['function']}" if s["function"] == "softmax" else ""
    return f"use {s['new']} in place of {s['old']}{without}"


@replace_loss.applies
def apply_replace_loss(treated: TreatedWorkload, p: Fix) -> None:
    """A loss of torch is exchanged. A user's own stays, and sees what makes it the new one: nll_loss of log_softmax is cross entropy."""
    s = p.settings
    old, new, classes = str(s["old"]), str(s["new"]), int(s.get("classes") or 0)
    if "target" in s:
        treated.transform(functools.partial(_coerced_batch, require_target(treated), str(s["target"])))
        return
    if old in CLASS_LOSSES and new == "binary_cross_entropy_with_logits":
        treated.replace_loss(_binary)
        return
    if s.get("in_code"):
        edit_code(treated, p.location, _with_logarithm if s["function"] == "softmax" or old == new else operand)
        return
    if old == new:
        map_output(treated, _logarithm if s["function"] else _last_log_softmax)
        return
    other = counterpart(treated.workload.loss, new)
    if other is not None:
        treated.replace_loss(other)
    if s["function"] == "softmax":
        map_output(treated, _logarithm)
    elif other is None:
        map_output(treated, functools.partial(_log_softmax, classes) if old == "nll_loss" else _MAPS[old])


_MODULES: dict[str, Any] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "nll_loss": nn.NLLLoss,
    "binary_cross_entropy": nn.BCELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
}


def counterpart(loss: Any, new: str) -> Any:
    """The loss of torch by that name with the settings of the given one; None for a user's own."""
    if any(loss is getattr(F, name) for name in _MODULES):
        return getattr(F, new)
    if type(loss) not in _MODULES.values():
        return None
    shared = ("weight", "ignore_index", "reduction")
    made = _MODULES[new]
    known = inspect.signature(made).parameters
    return made(**{name: getattr(loss, name) for name in shared if name in known and hasattr(loss, name)})


def _with_logarithm(node: ast.expr, function: types.FunctionType) -> ast.expr | None:
    """log_softmax(x) for softmax(x), the other arguments as they are."""
    named = node.func if isinstance(node, ast.Call) else None
    name = named.attr if isinstance(named, ast.Attribute) else named.id if isinstance(named, ast.Name) else ""
    x = operand(node, function)
    if not isinstance(node, ast.Call) or x is None or name not in _LOGARITHMS:
        return None
    call = torch_function(f"nn.functional.{_LOGARITHMS[name]}", x, *(a for a in node.args if a is not x))
    call.keywords = [k for k in node.keywords if k.value is not x]
    return call


def _logarithm(output: torch.Tensor, _: Any) -> torch.Tensor:
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()


def _log_softmax(classes: int, output: torch.Tensor, target: Any) -> torch.Tensor:
    return F.log_softmax(output, _class_axis(output, target, classes))


def _class_axis(output: torch.Tensor, target: Any, classes: int) -> int:
    """Axis 1 as torch's losses have it, unless the classes are on another one."""
    if output.dim() < 3:
        return -1
    fits = [axis for axis in range(1, output.dim()) if output.shape[axis] == classes]
    return -1 if classes_are_last(output, target) or (fits and 1 not in fits) else 1


def _sigmoid(output: torch.Tensor, _: Any) -> torch.Tensor:
    return torch.sigmoid(output)


def _logit(output: torch.Tensor, _: Any) -> torch.Tensor:
    return torch.logit(output, eps=1e-6)


def _last_log_softmax(output: torch.Tensor, _: Any) -> torch.Tensor:
    return F.log_softmax(output, -1)


_MAPS: dict[str, Map] = {"binary_cross_entropy": _sigmoid, "binary_cross_entropy_with_logits": _logit}


def _binary(output: Any, target: torch.Tensor) -> torch.Tensor:
    logits = first_tensor(output)
    return F.binary_cross_entropy_with_logits(logits.reshape(target.shape), target.to(logits.dtype))


def _coerced_batch(index: int, kind: str, batch: Batch) -> Batch:
    target = tensor_at(batch, index)
    if kind == "long":
        return replaced(batch, {index: target.long().reshape(len(target))})
    return replaced(batch, {index: target.to(torch.get_default_dtype())})


REMEDIES = (replace_loss,)
