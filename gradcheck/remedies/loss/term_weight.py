"""Terms of the loss that outweigh the others: a mean where they were summed, or a weight, which a variational autoencoder calls beta.

And a stopped gradient on the side of a self-distillation that has no predictor: what keeps embeddings from becoming one point;
and a term that spreads tokens over the experts of a router.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.balance import reduced
from gradcheck.measure.checks.embeddings import is_embedding, outermost
from gradcheck.measure.checks.listing import Listing
from gradcheck.measure.checks.routing import Watching, distribution, groups_of
from gradcheck.remedies.definition import Strength, of_loss
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.rng import preserve_rng, seed_all
from gradcheck.workload.training_copy import TrainingCopy, fork
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from gradcheck.workload.workload import Batch, TrainingStep


@of_loss("average-term", "a mean for a sum", "Kingma and Welling 2014, Auto-encoding variational Bayes")
def average_term(finding: Finding | None, m: Measurement) -> list[Fix]:
    remedy = next((r for r in finding.remedies if r.name == "average-term"), None) if finding is not None else None
    return [average_term.fix(remedy.text, finding)] if remedy is not None else []


@average_term.applies
def refuse(treated: TreatedWorkload, p: Fix) -> None:
    raise Inapplicable("how a term is taken together is written in the source")


@of_loss(
    "kl-weight",
    "a weight for the divergence",
    "Rybkin, Daniilidis and Levine 2021, Simple and effective VAE training with calibrated decoders",
    strengths=(Strength("weight", 1e-3, 1e-7, 1.0),),
    wording="multiply the divergence by {weight:.3g}",
)
def kl_weight(finding: Finding | None, m: Measurement) -> list[Fix]:
    pair = m.imbalance
    if pair is None or pair.balanced is None or finding is None or finding.location != pair.strong.site:
        return []
    return [kl_weight.with_settings(finding, weight=float(f"{pair.balanced:.3g}"), operation=pair.strong.operation)]


@kl_weight.applies
def apply(treated: TreatedWorkload, p: Fix) -> None:
    w = treated.workload
    with preserve_rng():
        copy = fork(w)
        if _term(copy.training_step, p, copy.model, w.batches[0])[1] is None:
            raise Inapplicable("the loss of the first batch has no such term")
    w.training_step = functools.partial(_weighted, w.training_step, p)


def _weighted(step: TrainingStep, p: Fix, model: nn.Module, batch: Batch) -> torch.Tensor:
    loss, term = _term(step, p, model, batch)
    return loss if term is None else loss + (float(p.settings["weight"]) - 1) * term


def _term(step: TrainingStep, p: Fix, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss, and what the divergence adds to it."""
    listing = Listing()
    with torch.enable_grad(), listing:
        loss = step(model, batch)
    whole = listing.of(loss)
    terms = reduced(whole, set()) if whole is not None else ()
    found = [t.call.tensor for t in terms if (t.facts.operation, t.facts.site) == (p.settings["operation"], p.location)]
    if len(found) != 1:
        return loss, None
    (factor,) = torch.autograd.grad(loss, found, retain_graph=True)
    return loss, factor * found[0]


TEXT = "detach() the embeddings that no predictor has seen: they are a target for those that one has"


@of_loss("stop-gradient", "a stopped gradient", "Chen and He 2021, Exploring simple Siamese representation learning")
def stop_gradient(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Where embeddings collapse and gradient goes to both sides."""
    if finding is None or m.embeddings is None or m.embeddings.stopped or finding.location != m.embeddings.site:
        return []
    return [stop_gradient.fix(TEXT, finding)]


@stop_gradient.applies
def stop(treated: TreatedWorkload, p: Fix) -> None:
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


WEIGHT = 0.01  # Fedus, Zoph and Shazeer 2021, section 2.2: the largest that leaves the task's own loss alone


@of_loss(
    "load-balancing",
    "a term that balances experts",
    "Fedus, Zoph and Shazeer 2021, Switch transformers",
    strengths=(Strength("weight", WEIGHT, 1e-3, 1.0),),
    wording="add {weight:.2g} * experts * (share of the tokens * mean probability of each expert).sum() to the loss",
)
def load_balancing(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None or not m.routers:
        return []
    return [load_balancing.with_settings(finding, weight=WEIGHT)]


@load_balancing.applies
def balance(treated: TreatedWorkload, p: Fix) -> None:
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


REMEDIES = (average_term, kl_weight, stop_gradient, load_balancing)
