"""A term of the loss that spreads tokens over the experts of a router."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.routing import Watching, distribution, groups_of
from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.training_copy import fork
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from gradcheck.workload.workload import Batch, TrainingStep

WEIGHT = 0.01  # Fedus, Zoph and Shazeer 2021, section 2.2: the largest that leaves the task's own loss alone


def propose(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or not m.routers:
        return []
    return [LOAD_BALANCING.fix(_words({"weight": WEIGHT}), finding, settings={"weight": WEIGHT})]


def _words(s: Settings) -> str:
    return f"add {float(s['weight']):.2g} * experts * (share of the tokens * mean probability of each expert).sum() to the loss"


def apply(treated: TreatedWorkload, p: Fix) -> None:
    w = treated.workload
    with preserve_rng():
        copy = fork(w)
        terms = _terms(copy.model, copy.training_step, w.batches[0])[1]
    if not terms:
        raise Inapplicable("no router chose among experts in the first batch")
    w.training_step = functools.partial(_balanced, w.training_step, float(p.settings["weight"]))


def _balanced(step: TrainingStep, weight: float, model: nn.Module, batch: Batch) -> torch.Tensor:
    loss, terms = _terms(model, step, batch)
    return loss + weight * torch.stack(terms).sum() if terms else loss


def without_balancing(step: TrainingStep) -> TrainingStep:
    """The step that a balancing term was added to."""
    return step.args[0] if isinstance(step, functools.partial) and step.func is _balanced else step


def _terms(model: nn.Module, step: TrainingStep, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and for each choice among experts what the balancing term is before its weight: 1 where all get the same."""
    groups = groups_of(model)
    watching = Watching({id(m): name for name, m in model.named_modules()}, groups)
    with watching:
        loss = step(model, batch)
    terms = []
    for choice in watching.choices:
        if watching.is_routing(choice, groups):
            experts = choice.scores.shape[1]
            load = F.one_hot(choice.index.reshape(-1), experts).float().mean(0)
            terms.append(experts * (load * distribution(choice.scores).mean(0)).sum().to(loss.dtype))
    return loss, terms


LOAD_BALANCING = RemedyDefinition(
    "load-balancing",
    "a term that balances experts",
    "loss",
    "unsafe",
    "Fedus, Zoph and Shazeer 2021, Switch transformers",
    propose,
    apply,
    strengths=(Strength("weight", WEIGHT, 1e-3, 1.0),),
    wording=_words,
)
REMEDIES = (LOAD_BALANCING,)
