"""Treatments of how a loss is taken: shapes that belong together, the sign, and smoothed labels."""

import ast
import functools
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.definition import Strength, of_loss, regularizing
from gradcheck.remedies.modules.user_code import edit_code, map_output, require_target, user_function
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.workload.step import apply_loss, as_scalar, classes_are_last, first_tensor
from gradcheck.workload.treated import TreatedWorkload, replaced, tensor_at
from gradcheck.workload.workload import Batch, TrainingStep


@of_loss("match-shapes", "output and target of one shape", "PyTorch documentation, Broadcasting semantics")
def match_shapes(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Of two shapes that differ by an axis of length 1, the longer one loses it."""
    pairs = [(c.input_shape, c.target_shape, c.site) for c in m.losses if c.broadcast is not None]
    heads = [x.output_shape for x in m.layers if x.head]
    for mix in m.mixes:
        output_first = mix.left in heads or mix.right not in heads
        pairs.append((mix.left, mix.right, mix.site) if output_first else (mix.right, mix.left, mix.site))
    for output, target, site in pairs:
        if finding is not None and finding.location not in (None, site):
            continue
        operand, long, short = ("output", output, target) if len(output) > len(target) else ("target", target, output)
        dim = next((i for i, n in enumerate(long) if n == 1 and long[:i] + long[i + 1 :] == short), None)
        if dim is None:
            continue
        dim = -1 if dim == len(long) - 1 else dim
        settings: dict[str, Setting] = {"operand": operand, "operation": "squeeze", "dim": dim}
        text = f"give both the same shape: {operand}.squeeze({dim}), {list(long)} to {list(short)}"
        return [match_shapes.fix(text, finding, settings=settings)]
    return []


@match_shapes.applies
def apply_match_shapes(treated: TreatedWorkload, p: Fix) -> None:
    operand, dim = p.settings["operand"], int(p.settings["dim"])
    if operand == "output":
        map_output(treated, functools.partial(_squeezed, dim))
        return
    treated.transform(functools.partial(_squeezed_batch, require_target(treated), dim))


def _squeezed(dim: int, output: torch.Tensor, _: Any) -> torch.Tensor:
    return output.squeeze(dim)


def _squeezed_batch(index: int, dim: int, batch: Batch) -> Batch:
    return replaced(batch, {index: tensor_at(batch, index).squeeze(dim)})


@of_loss("flip-sign", "descent in place of ascent", "PyTorch documentation, torch.optim.SGD: maximize", applicability="safe")
def flip_sign(finding: Finding | None, m: Measurement) -> list[Fix]:
    if m.optimizer.maximize:
        return [flip_sign.fix("drop maximize=True", finding, settings={"maximize": False})]
    negated = [c for c in m.losses if (c.weight_in_total or 0.0) < 0]
    if negated:
        call = next((c for c in negated if finding is not None and c.site == finding.location), negated[0])
        whole = len(m.losses) == 1
        settings: dict[str, Setting] = {"function": call.function, "whole": whole}
        text = f"drop the minus in front of {call.function}" if whole else f"add {call.function} to the total instead of subtracting it"
        return [flip_sign.fix(text, finding, settings=settings, applicability="unsafe")]
    if m.optimizer.lr < 0:
        return [flip_sign.fix("make the rate positive", finding, settings={"lr": -m.optimizer.lr})]
    return []


@flip_sign.applies
def apply_flip_sign(treated: TreatedWorkload, p: Fix) -> None:
    groups = treated.optimizer.param_groups
    if "maximize" in p.settings:
        for group in groups:
            group["maximize"] = False
    elif "lr" in p.settings:
        for group in groups:
            group["lr"] = abs(group["lr"])
    elif not p.settings["whole"]:
        edit_code(treated, p.location, lambda node, _: ast.UnaryOp(ast.USub(), node) if isinstance(node, ast.Call) else None)
    elif treated.workload.loss is not None:
        treated.replace_loss(functools.partial(_negated, treated.workload.loss))
    else:
        treated.workload.training_step = functools.partial(_negated_step, treated.workload.training_step)


def _negated(loss: Any, output: Any, target: Any) -> torch.Tensor:
    return -as_scalar(apply_loss(loss, output, target))


def _negated_step(step: TrainingStep, model: nn.Module, batch: Batch) -> torch.Tensor:
    return -step(model, batch)


SMOOTHING = 0.1


@regularizing(
    "label-smoothing",
    "label smoothing",
    "Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision",
    strengths=(Strength("smoothing", SMOOTHING, 0.01, 0.4),),
    wording="smooth the labels: cross_entropy with label_smoothing={smoothing:.3g}",
)
def label_smoothing(finding: Finding | None, m: Measurement) -> list[Fix]:
    call = next((c for c in m.losses if c.function == "cross_entropy" and c.target_kind == "classes" and not c.label_smoothing), None)
    if call is None:
        return []
    fix = label_smoothing.with_settings(finding, smoothing=SMOOTHING)
    return [replace(fix, location=fix.location or call.site)]


@label_smoothing.applies
def smooth_labels(treated: TreatedWorkload, p: Fix) -> None:
    set_smoothing(treated, float(p.settings["smoothing"]), p.location)


def set_smoothing(treated: TreatedWorkload, smoothing: float, site: Location | None) -> None:
    """In every nn.CrossEntropyLoss that the loss holds, or in the call at a place. Raises Inapplicable."""
    loss = treated.workload.loss
    modules = list(_cross_entropies(loss if loss is not None else user_function(treated)))
    for module in modules:
        module.label_smoothing = smoothing
    if loss is F.cross_entropy:
        treated.replace_loss(functools.partial(_smoothed, smoothing))
    elif not modules:
        edit_code(treated, site, functools.partial(_with_smoothing, smoothing))


def _cross_entropies(holder: Any) -> Iterator[nn.CrossEntropyLoss]:
    """Those in a loss module, around a partial, or among what a function refers to."""
    if isinstance(holder, nn.Module):
        yield from (x for x in holder.modules() if isinstance(x, nn.CrossEntropyLoss))
    elif isinstance(holder, functools.partial):
        for value in (holder.func, *holder.args):
            yield from _cross_entropies(value)
    elif isinstance(holder, types.FunctionType):
        space = [holder.__globals__.get(name) for name in holder.__code__.co_names]
        cells = [c.cell_contents for c in holder.__closure__ or ()]
        yield from (x for x in (*space, *cells) if isinstance(x, nn.CrossEntropyLoss))


def _smoothed(smoothing: float, output: Any, target: Any) -> torch.Tensor:
    prediction = first_tensor(output)
    if classes_are_last(prediction, target):
        prediction = prediction.movedim(-1, 1)
    return F.cross_entropy(prediction, target, label_smoothing=smoothing)


def _with_smoothing(smoothing: float, node: ast.expr, _: types.FunctionType) -> ast.expr | None:
    if not isinstance(node, ast.Call):
        return None
    keywords = [k for k in node.keywords if k.arg != "label_smoothing"]
    return ast.Call(node.func, node.args, [*keywords, ast.keyword("label_smoothing", ast.Constant(smoothing))])


REMEDIES = (match_shapes, flip_sign, label_smoothing)
