"""Treatments of weight decay: what it acts on, and how strongly."""

from typing import Any

import torch
from torch import nn

from gradcheck.analysis.update_sizes import gentle_decay
from gradcheck.measure.checks.without_regularization import without_penalty
from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

USUAL_DECAY = 0.01  # AdamW's default
COUPLED = ("Adam", "NAdam", "RAdam")  # those of torch that can decouple their decay


def propose_decoupled(finding: Finding | None, m: Measurement) -> list[Fix]:
    o = m.optimizer
    if o.name not in (*COUPLED, "AdamW") or (finding is None and o.decoupled and o.weight_decay > 0):
        return []
    settings: dict[str, Setting] = {"weight_decay": USUAL_DECAY}
    return [DECOUPLED.fix(_decoupled_words(settings), finding, settings=settings)]


def _decoupled_words(s: Settings) -> str:
    return f"let weight decay {float(s['weight_decay']):.3g} shrink the weights themselves (AdamW), not pass through the moments"


def decouple(treated: TreatedWorkload, p: Fix) -> None:
    """AdamW in place of Adam, with its moments; NAdam and RAdam by their own switch. Biases and gains are left undecayed."""
    old = treated.optimizer
    if type(old) not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam):
        raise Inapplicable(f"{type(old).__name__} has no form with decoupled weight decay")
    if type(old) is torch.optim.Adam:
        new = torch.optim.AdamW([{**g, "params": list(g["params"])} for g in old.param_groups])
        new.state.update(old.state)
        treated.replace_optimizer(new)
    for group in treated.optimizer.param_groups:
        group["decoupled_weight_decay"] = True
        group["weight_decay"] = float(p.settings["weight_decay"])
    spare_vectors(treated.optimizer)


def propose_groups(finding: Finding | None, m: Measurement) -> list[Fix]:
    decayed = [x for x in m.parameters if x.trainable and x.groups and x.weight_decay > 0]
    vectors = [x for x in decayed if len(x.shape) <= 1]
    if not vectors:
        return []
    text = f"put the {len(vectors)} biases and gains into a group without weight decay"
    layers = tuple(dict.fromkeys(x.layer for x in vectors))
    settings: dict[str, Setting] = {"weight_decay": max(x.weight_decay for x in decayed)}
    return [GROUPS.fix(text, finding, layers=layers, settings=settings)]


def divide_groups(treated: TreatedWorkload, _: Fix) -> None:
    if not spare_vectors(treated.optimizer):
        raise Inapplicable("no bias or gain is in a group with weight decay")


def spare_vectors(optimizer: torch.optim.Optimizer) -> int:
    """Moves parameters with fewer than two axes out of groups with weight decay, each into a twin without. Returns how many."""
    moved = 0
    for group in list(optimizer.param_groups):
        vectors = [p for p in group["params"] if p.dim() < 2]
        if not group.get("weight_decay") or not vectors:
            continue
        moved += len(vectors)
        if len(vectors) == len(group["params"]):
            group["weight_decay"] = 0.0
            continue
        group["params"] = [p for p in group["params"] if p.dim() >= 2]
        optimizer.param_groups.append({**group, "params": vectors, "weight_decay": 0.0})
    return moved


def propose_weaker(finding: Finding | None, m: Measurement) -> list[Fix]:
    """As the rule says it; a penalty in the loss comes to a tenth of the loss."""
    penalty = m.regularization.penalty if m.regularization is not None else None
    if penalty is not None and (finding is None or "penalty" in finding.message):
        divisor = float(f"{penalty.value / max(abs(penalty.data), 1e-12) / 0.1:.1g}")
        text = f"divide the factor of the penalty in the loss by {divisor:g}: it is then a tenth of the loss"
        return [WEAKER.fix(text, finding, settings={"divisor": divisor})] if divisor > 1 else []
    strongest = max((x.weight_decay for x in m.parameters), default=m.optimizer.weight_decay)
    if strongest <= 0 or m.optimizer.lr <= 0:
        return []
    decay = gentle_decay(m, strongest)
    return [WEAKER.fix(f"set weight_decay to {decay:g} (now {strongest:g})", finding, settings={"weight_decay": decay})]


def weaken(treated: TreatedWorkload, p: Fix) -> None:
    if "divisor" in p.settings:
        weaken_penalty(treated, float(p.settings["divisor"]))
        return
    groups = [g for g in treated.optimizer.param_groups if g.get("weight_decay")]
    if not groups:
        raise Inapplicable("the optimizer has no weight decay")
    for group in groups:
        group["weight_decay"] = min(group["weight_decay"], float(p.settings["weight_decay"]))


def weaken_penalty(treated: TreatedWorkload, divisor: float) -> None:
    """The loss of the data, and the rest of it divided: the penalty is what does not go through the model's output."""
    whole = treated.workload.training_step
    data = without_penalty(whole)

    def weakened(model: nn.Module, batch: Any) -> torch.Tensor:
        rest = data(model, batch)
        return rest + (whole(model, batch) - rest) / divisor

    treated.workload.training_step = weakened


DECOUPLED = RemedyDefinition(
    "decoupled-weight-decay",
    "decoupled weight decay",
    "optimizer",
    "safe",
    "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization",
    propose_decoupled,
    decouple,
    strengths=(Strength("weight_decay", USUAL_DECAY, 1e-4, 3.0),),
    wording=_decoupled_words,
)
GROUPS = RemedyDefinition(
    "weight-decay-groups",
    "no weight decay on biases and gains",
    "optimizer",
    "safe",
    "He et al. 2019, Bag of Tricks for Image Classification with Convolutional Neural Networks",
    propose_groups,
    divide_groups,
)
WEAKER = RemedyDefinition(
    "weaker-weight-decay",
    "weaker weight decay",
    "regularization",
    "safe",
    "Wang and Aitchison 2024, How to set AdamW's weight decay as you scale model and dataset size",
    propose_weaker,
    weaken,
)

REMEDIES = (DECOUPLED, GROUPS, WEAKER)
