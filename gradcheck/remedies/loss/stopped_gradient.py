"""A stopped gradient on the side of a self-distillation that has no predictor: what keeps embeddings from becoming one point."""

import functools
from typing import Any

import torch
from torch import nn

from gradcheck.measure.checks.embeddings import is_embedding, outermost
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.rng import preserve_rng, seed_all
from gradcheck.workload.training_copy import TrainingCopy, fork
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from gradcheck.workload.workload import Batch, TrainingStep

TEXT = "detach() the embeddings that no predictor has seen: they are a target for those that one has"


def propose(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Where embeddings collapse and gradient goes to both sides."""
    if finding is None or m.embeddings is None or m.embeddings.stopped or finding.location != m.embeddings.site:
        return []
    return [STOP_GRADIENT.fix(TEXT, finding)]


def apply(treated: TreatedWorkload, p: Fix) -> None:
    w = treated.workload
    with preserve_rng():
        copy = fork(w)
        feeding = _feeding(copy, w.batches[0])
        before, after = (_gradient(copy, step, w.batches[0]) for step in (copy.training_step, _stopping(copy.training_step, feeding)))
    if not feeding or torch.equal(before, after):
        raise Inapplicable("no module takes the embeddings of one side only: without a predictor both sides stay alike")
    w.training_step = _stopping(w.training_step, feeding)


def _feeding(copy: TrainingCopy, batch: Batch) -> tuple[str, ...]:
    """Modules whose embeddings another one takes as they are."""
    paths = {id(m): name for name, m in copy.model.named_modules()}
    made: dict[int, tuple[torch.Tensor, str]] = {}
    feeding: list[str] = []

    def look(module: nn.Module, output: Any) -> Any:
        if is_embedding(output):
            made[id(output)] = (output, paths.get(id(module), ""))
        return output

    def given(module: nn.Module, args: Any) -> None:
        feeding.extend(made[id(a)][1] for a in args if id(a) in made)

    with outermost(look, given):
        copy.loss(batch)
    return tuple(dict.fromkeys(feeding))


def _gradient(copy: TrainingCopy, step: TrainingStep, batch: Batch) -> torch.Tensor:
    """Of all parameters together."""
    seed_all(0)
    parameters = [p for p in copy.model.parameters() if p.requires_grad]
    given = torch.autograd.grad(step(copy.model, batch), parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for p, g in zip(parameters, given, strict=True)])


def _stopping(step: TrainingStep, feeding: tuple[str, ...]) -> TrainingStep:
    return functools.partial(_stopped, step, feeding)


def _stopped(step: TrainingStep, feeding: tuple[str, ...], model: nn.Module, batch: Batch) -> torch.Tensor:
    """The step, with embeddings that have gradient where another module takes them, and none where they are compared."""
    inner = {id(m) for name, m in model.named_modules() if name in feeding}
    cut: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def look(module: nn.Module, output: Any) -> Any:
        if id(module) not in inner or not is_embedding(output):
            return output
        stopped = output.detach()
        cut[id(stopped)] = (stopped, output)
        return stopped

    def given(module: nn.Module, args: Any) -> Any:
        return tuple(cut[id(a)][1] if id(a) in cut else a for a in args)

    with outermost(look, given):
        return step(model, batch)


STOP_GRADIENT = RemedyDefinition(
    "stop-gradient",
    "a stopped gradient",
    "loss",
    "unsafe",
    "Chen and He 2021, Exploring simple Siamese representation learning",
    propose,
    apply,
)
REMEDIES = (STOP_GRADIENT,)
