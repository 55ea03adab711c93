"""Terms of the loss that outweigh the others: a mean where they were summed, or a weight, which a variational autoencoder calls beta."""

import functools

import torch
from torch import nn

from gradcheck.measure.checks.balance import reduced
from gradcheck.measure.checks.listing import Listing
from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.training_copy import fork
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from gradcheck.workload.workload import Batch, TrainingStep


def propose_mean(finding: Finding | None, m: Measurement) -> list[Fix]:
    remedy = next((r for r in finding.remedies if r.name == "average-term"), None) if finding is not None else None
    return [AVERAGE.fix(remedy.text, finding)] if remedy is not None else []


def refuse(treated: TreatedWorkload, p: Fix) -> None:
    raise Inapplicable("how a term is taken together is written in the source")


AVERAGE = RemedyDefinition(
    "average-term",
    "a mean for a sum",
    "loss",
    "unsafe",
    "Kingma and Welling 2014, Auto-encoding variational Bayes",
    propose_mean,
    refuse,
)


def propose(finding: Finding | None, m: Measurement) -> list[Fix]:
    pair = m.imbalance
    if pair is None or pair.balanced is None or finding is None or finding.location != pair.strong.site:
        return []
    settings: dict[str, Setting] = {"weight": float(f"{pair.balanced:.3g}"), "operation": pair.strong.operation}
    return [KL_WEIGHT.fix(_words(settings), finding, settings=settings)]


def _words(s: Settings) -> str:
    return f"multiply the divergence by {float(s['weight']):.3g}"


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


KL_WEIGHT = RemedyDefinition(
    "kl-weight",
    "a weight for the divergence",
    "loss",
    "unsafe",
    "Rybkin, Daniilidis and Levine 2021, Simple and effective VAE training with calibrated decoders",
    propose,
    apply,
    strengths=(Strength("weight", 1e-3, 1e-7, 1.0),),
    wording=_words,
)
REMEDIES = (AVERAGE, KL_WEIGHT)
