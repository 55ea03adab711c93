"""Weights, their gradients and their real updates at the measured steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from gradcheck.nouns.measurement import Parameter, ParameterStep

SAMPLE = 1 << 14  # entries of a large parameter that are followed through the optimizer's step
SAME = 1e-6  # relative distance below which two rows count as equal


@dataclass(eq=False)
class Watched:
    """A parameter of the copy, with what was seen of it."""

    name: str
    tensor: nn.Parameter
    layer: str
    aliases: list[str] = field(default_factory=list)
    groups: int = 0
    mean: float = 0.0
    std: float = 0.0
    suspicious: bool = True  # constant, or with equal rows, at the first look: looked at again
    used: bool = False
    steps: list[ParameterStep] = field(default_factory=list)

    def noun(self) -> Parameter:
        t = self.tensor
        return Parameter(
            self.name,
            self.layer,
            tuple(t.shape),
            t.numel(),
            str(t.dtype).removeprefix("torch."),
            t.requires_grad,
            self.groups,
            tuple(self.aliases),
            self.mean,
            self.std,
            self.used,
            tuple(self.steps),
        )


def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Watched]:
    """All parameters, tied ones once, with how many groups of the optimizer hold them."""
    grouped: dict[int, int] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            grouped[id(p)] = grouped.get(id(p), 0) + 1
    found: dict[int, Watched] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if isinstance(p, nn.parameter.UninitializedTensorMixin):
            continue
        if id(p) in found:
            found[id(p)].aliases.append(name)
            continue
        watched = found[id(p)] = Watched(name, p, name.rpartition(".")[0], groups=grouped.get(id(p), 0))
        values = _floats(p)
        if values.numel():
            watched.mean = values.mean().item()
            watched.std = values.std(correction=0).item()
    return list(found.values())


class StepWatch:
    """What one optimizer step does to the parameters. Make it after the backward pass, call `after` once the step was taken."""

    @torch.no_grad()
    def __init__(self, watched: Sequence[Watched], step: int, *, look_at_rows: bool) -> None:
        self.watched = [w for w in watched if w.tensor.numel()]
        self.step = step
        self.rows = look_at_rows
        self.norms = _norms([_floats(w.tensor) for w in self.watched])
        self.gradients = [_gradient(w.tensor) for w in self.watched]
        present = iter(_norms([g for g in self.gradients if g is not None]))
        self.gradient_norms = [None if g is None else next(present) for g in self.gradients]
        self.before = [_sample(w.tensor).clone() for w in self.watched]
        self.gradient_samples = [None if w.tensor.grad is None or w.tensor.grad.is_sparse else _sample(w.tensor.grad).clone() for w in self.watched]

    @torch.no_grad()
    def after(self) -> float | None:
        """Files a ParameterStep with each parameter. Returns the cosine of the whole update with the negative gradient."""
        product = update_square = gradient_square = 0.0
        for i, w in enumerate(self.watched):
            change = _sample(w.tensor) - self.before[i]
            base = self.before[i].norm().item()
            moved = change.norm().item()
            g = self.gradient_samples[i]
            if g is not None and g.shape == change.shape:
                weight = w.tensor.numel() / max(1, change.numel())
                product -= weight * torch.dot(change.float(), g.float()).item()
                update_square += weight * moved**2
                gradient_square += weight * g.float().norm().item() ** 2
            ratio = moved / base if base > 0 and math.isfinite(moved) and w.tensor.requires_grad else None
            w.steps.append(self._noun(i, w, ratio))
        if update_square > 0 and gradient_square > 0 and math.isfinite(update_square * gradient_square):
            return product / (update_square * gradient_square) ** 0.5
        return None

    def _noun(self, i: int, w: Watched, ratio: float | None) -> ParameterStep:
        norm, gradient = self.gradient_norms[i], self.gradients[i]
        if norm is not None:
            w.used = True
        duplicates, constant = None, False
        if self.rows and w.suspicious and w.tensor.dim() >= 2:
            duplicates, constant = equal_rows(w.tensor, gradient)
            w.suspicious = constant or bool(duplicates)
        return ParameterStep(
            self.step,
            self.norms[i],
            norm,
            None if gradient is None or not gradient.numel() else gradient.abs().max().item() if self.rows else None,
            norm is None or math.isfinite(norm),
            ratio,
            duplicates,
            constant,
        )


def equal_rows(weight: torch.Tensor, gradient: torch.Tensor | None) -> tuple[float, bool]:
    """Share of the rows [units, fan_in] that equal another row in weight and in gradient, and whether all entries are equal.

    Rows are compared through their product with one random vector: equal rows have equal products, and others
    practically never do.
    """
    rows = weight.detach().reshape(weight.shape[0], -1)
    low, high = torch.aminmax(rows.float()) if rows.numel() else (torch.zeros(()), torch.zeros(()))
    constant = bool(low == high) and rows.numel() > 1
    if rows.shape[0] < 2 or rows.shape[1] < 2:
        return 0.0, constant
    twin = _has_twin(rows)
    if gradient is not None and gradient.numel() == rows.numel() and bool(twin.any()):
        twin &= _has_twin(gradient.reshape(rows.shape))
    return twin.float().mean().item(), constant


def _has_twin(rows: torch.Tensor) -> torch.Tensor:
    """rows: [n, d] -> bool [n]: another row is equal."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(rows.shape[1], generator=generator).to(rows.device)
    wide = rows.float()
    key = wide @ direction
    scale = wide.abs().amax() * rows.shape[1] ** 0.5
    order = key.argsort()
    close = (key[order][1:] - key[order][:-1]).abs() <= SAME * scale
    sorted_twin = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
    sorted_twin[1:] |= close
    sorted_twin[:-1] |= close
    twin = torch.empty_like(sorted_twin)
    twin[order] = sorted_twin
    return twin


def total_norm(parameters: Iterable[nn.Parameter]) -> float:
    """2-norm of all gradients together."""
    gradients = [g for p in parameters if (g := _gradient(p)) is not None and g.numel()]
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0


def _norms(tensors: Sequence[torch.Tensor]) -> list[float]:
    """2-norms in one batched call; in float64 where float32 underflows or overflows."""
    if not tensors:
        return []
    found = torch.stack([n.float() for n in torch._foreach_norm(tensors)]).tolist()
    for i, (value, tensor) in enumerate(zip(found, tensors, strict=True)):
        if not 1e-15 < value < 1e18:
            found[i] = tensor.double().norm().item()
    return found


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _gradient(p: torch.Tensor) -> torch.Tensor | None:
    if p.grad is None:
        return None
    gradient = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
    return _floats(gradient)


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """An even sample of the entries, as a flat view or copy."""
    flat = _floats(tensor).reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)]
