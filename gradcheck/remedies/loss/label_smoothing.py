"""Label smoothing: in a cross entropy of torch, or in the code of a loss that calls one."""

import ast
import functools
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.definition import Strength, regularizing
from gradcheck.remedies.modules.user_code import edit_code, user_function
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.workload.step import classes_are_last, first_tensor
from gradcheck.workload.treated import TreatedWorkload

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


REMEDIES = (label_smoothing,)
