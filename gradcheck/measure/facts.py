"""Facts about the workload that need no training: optimizer, environment, earlier training; and which places of its source are shown."""

import platform
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gradcheck.measure.first_step import FirstStep
from gradcheck.training.trainer import lr_of
from gradcheck.types.location import Location
from gradcheck.types.measurement import Environment
from gradcheck.types.training import OptimizerFacts
from gradcheck.workload.workload import Workload

# Optimizers that shrink the weights themselves; those of torch say it in their groups as `decoupled_weight_decay`.
_DECOUPLED = re.compile(r"W$|lion|lamb|muon|adafactor|sophia|soap|shampoo|adopt|prodigy", re.IGNORECASE)
_ADAPTIVE = re.compile(r"ada|rms|lion|rprop|muon|lamb|sophia|soap|shampoo", re.IGNORECASE)


def optimizer_facts(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, given: bool, hidden: int, site: Location | None
) -> OptimizerFacts:
    """`hidden`: trainable tensors that the model does not list; they are no leftovers of an earlier model."""
    groups = optimizer.param_groups
    first: Mapping[str, Any] = groups[0] if groups else {}
    listed = {id(p) for p in model.parameters()}
    stale = sum(id(p) not in listed for g in groups for p in g["params"])
    betas = first.get("betas") or (first.get("momentum", 0.0),)
    lr, initial = lr_of(optimizer) or 0.0, float(first.get("initial_lr", 0.0) or 0.0)
    name = type(optimizer).__name__
    eps, decoupled = first.get("eps"), first.get("decoupled_weight_decay", bool(_DECOUPLED.search(name)))
    return OptimizerFacts(
        name,
        given,
        is_adaptive(optimizer),
        lr,
        momentum=float(betas[0] or 0.0),
        weight_decay=max((float(g.get("weight_decay") or 0.0) for g in groups), default=0.0),
        maximize=bool(first.get("maximize", False)),
        warming_up=lr < initial,
        stale=max(0, stale - hidden),
        site=site,
        eps=float(eps) if isinstance(eps, (int, float)) else None,
        betas=tuple(float(b or 0.0) for b in betas),
        decoupled=bool(decoupled),
    )


def is_adaptive(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the size of its step hardly depends on the size of the gradient."""
    return bool(_ADAPTIVE.search(type(optimizer).__name__))


def environment(model: nn.Module) -> Environment:
    p = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = str(p.dtype).removeprefix("torch.") if p is not None else "float32"
    device = str(p.device) if p is not None else "cpu"
    return Environment(platform.python_version(), torch.__version__, platform.platform(), device, dtype, torch.get_num_threads())


def pretrained(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Traces of earlier training: normalization statistics that have seen batches, or a filled optimizer state."""
    tracked = (b for name, b in model.named_buffers() if name.endswith("num_batches_tracked"))
    return any(bool(b.item()) for b in tracked if b.numel() == 1) or any(_has_stepped(state) for state in optimizer.state.values())


def _has_stepped(state: Any) -> bool:
    """Adagrad fills its state when it is made, with step 0."""
    return bool(state) and (not isinstance(state, Mapping) or "step" not in state or float(state["step"]) > 0)


def unbounded(series: Sequence[float]) -> bool:
    """The loss fell far below zero, and faster in the second half of the run than in the first."""
    n = len(series)
    if n < 8 or not series[-1] < -10 * max(1.0, abs(series[0])):
        return False
    return series[n // 2] - series[-1] > series[0] - series[n // 2] > 0


def shown_places(
    w: Workload, sites: Mapping[str, Location | None], first: FirstStep, sited: Collection[Any], values: Mapping[str, Any]
) -> list[Location]:
    """`sites`: of the modules, by name; `sited`: records with a site; `values`: what the checks found, by its name in a Measurement."""
    every = (
        *sited,
        *first.losses,
        *first.softmaxes,
        *first.similarities,
        *first.mixes,
        *first.scrambles,
        *first.loss_operations,
        *first.differences,
        *first.entering,
        *first.hidden,
        *first.zero_derivatives,
        *values.get("attentions", ()),
        *values.get("idle_terms", ()),
        *(values.get("routers") or ()),
        *(v for name in ("dependence", "derivatives", "padding", "embeddings") if (v := values.get(name)) is not None),
    )
    sequence, pair = values.get("sequence"), values.get("imbalance")
    compared = (pair.strong, pair.weak) if pair is not None else ()
    made = (w.sites.get(id(x)) for x in (*w.model.parameters(), w.optimizer))
    places = (*(x.site for x in (*every, *compared)), *sites.values(), *made, *(sequence.sites if sequence is not None else ()))
    return [place for place in places if place is not None]
