"""Embeddings that are only compared with each other: whether one and the same point for all of them would satisfy the loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.listing import Listing, behind
from gradcheck.types.checks import Embeddings
from gradcheck.types.location import Location
from gradcheck.workload.tensors import named_tensors
from gradcheck.workload.training_copy import TrainingCopy

SAMPLES = 8  # that a spread is taken over, at least,
FEATURES = 4  # and so many features: fewer are no embedding
POINTS = 3  # constants that are put in place of the embeddings: their mean, and others of the same size


@dataclass
class _Pass:
    """The outputs of the outermost modules that give embeddings, in one pass, by the path of each."""

    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    stopped: bool = False  # some value of a module goes into the loss without gradient
    loss: float = 0.0
    place: Location | None = None


def embeddings(context: CheckContext) -> Embeddings | None:
    """None if the loss uses anything but what the model makes of its inputs, or if there are no embeddings."""
    batch, workload = context.workload.batches[0], context.workload
    names = {name for name, _ in named_tensors(batch)}
    inputs = workload.inputs if workload.inputs is not None else names if len(names) == 1 else frozenset()
    if context.targets or workload.loss is not None or names - inputs - workload.made:
        return None
    late = _taken(context.trained, batch)
    alike = _kinds(context.trained.model, late) == 1
    if not late.outputs or (late.stopped and not alike) or late.place is None:
        return None
    fresh = context.fork()
    early = _taken(fresh, batch)
    if early.outputs.keys() != late.outputs.keys():
        return None
    start, end = (min(spread_of(torch.cat(x)) for x in found.outputs.values()) for found in (early, late))
    constant = max(_with_constant(context.trained, batch, late, seed) for seed in range(POINTS))
    return Embeddings(start, end, early.loss, late.loss, constant, alike and late.stopped, late.place)


def _kinds(model: nn.Module, found: _Pass) -> int:
    """Of the modules that give embeddings; a teacher is of its student's kind."""
    return len({tuple(p.shape for p in model.get_submodule(path).parameters()) for path in found.outputs})


def spread_of(outputs: torch.Tensor) -> float:
    """Standard deviation of the normalised embeddings over the samples, times sqrt(features): 1 for points all around, 0 for one."""
    centre = F.normalize(outputs.detach().float(), dim=1).mean(0)
    return float((1 - centre.square().sum()).clamp(min=0).sqrt())


def _taken(copy: TrainingCopy, batch: Any) -> _Pass:
    found, notes, marks = _Pass(), list[tuple[str, torch.Tensor]](), list[int]()
    paths = {id(m): name for name, m in copy.model.named_modules()}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        mark = marks.pop()
        if _holds_weights(module) and is_embedding(output):
            notes[mark:] = [(paths.get(id(module), ""), output)]  # instead of those of the modules in it

    handles = [
        register_module_forward_pre_hook(lambda module, args: marks.append(len(notes))),
        register_module_forward_hook(note, always_call=True),
    ]
    listing = Listing()
    try:
        with torch.enable_grad(), listing:
            loss = copy.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    for path, output in notes:
        found.outputs.setdefault(path, []).append(output)
        found.stopped = found.stopped or not output.requires_grad
    found.loss = float(loss.detach())
    whole = listing.of(loss)
    if whole is not None:
        found.stopped = found.stopped or any(c.made for c in behind(whole))
    while whole is not None and whole.place is None:  # an effect of gradcheck's own
        whole = next((c for c in whole.calls if c.live), None)
    found.place = whole.place if whole is not None else None
    return found


def is_embedding(output: Any) -> bool:
    plain = isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() == 2
    return plain and output.shape[0] >= SAMPLES and output.shape[1] >= FEATURES


def _with_constant(copy: TrainingCopy, batch: Any, found: _Pass, seed: int) -> float:
    """The loss with one point for all samples in place of each module's embeddings."""
    generator = torch.Generator().manual_seed(seed)
    points = {name: torch.cat(x).detach().mean(0) for name, x in found.outputs.items()}
    first = next(iter(points.values()))
    if seed:  # one for all modules: any point would do
        other = torch.randn(first.shape, generator=generator, device="cpu").to(first)
        size = torch.cat(next(iter(found.outputs.values()))).detach().norm(dim=1).mean()
        points = dict.fromkeys(points, other / other.norm() * size)
    by_module = {id(copy.model.get_submodule(path)): point for path, point in points.items()}

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        point = by_module.get(id(module))
        fits = is_embedding(output) and point is not None and point.shape == output.shape[1:]
        return point.expand_as(output) + 0 * output if fits and point is not None else None

    handle = register_module_forward_hook(replace)
    try:
        with torch.no_grad():
            return float(copy.loss(batch))
    finally:
        handle.remove()


@contextmanager
def outermost(look: Any, given: Any = None) -> Iterator[None]:
    """While active, `look(module, output)` gives what modules return that are called from outside all others and hold weights.

    `given(module, args)`: what they get, or None for what they were given.
    """
    depth = 0

    def before(module: nn.Module, args: Any) -> Any:
        nonlocal depth
        depth += _holds_weights(module)
        return given(module, args) if given is not None and depth == 1 and _holds_weights(module) else None

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal depth
        depth -= _holds_weights(module)
        return look(module, output) if depth == 0 and _holds_weights(module) else None

    with register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True):
        yield


def _holds_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
