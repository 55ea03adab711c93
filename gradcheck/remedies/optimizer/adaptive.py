"""An optimizer that divides by the size of the gradients, in place of one that does not."""

from typing import Any

import torch

from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

USUAL_RATE, MOST_DECAY = 1e-3, 0.01  # AdamW's defaults in torch


def propose_adam(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Adam for SGD, as AdamW where there is weight decay, of which no more is left than AdamW's default."""
    if m.optimizer.name != "SGD" or m.optimizer.lr <= 0:
        return []
    decay = max((x.weight_decay for x in m.parameters), default=m.optimizer.weight_decay)
    settings: dict[str, Setting] = {"lr": USUAL_RATE, "weight_decay": min(decay, MOST_DECAY)}
    return [ADAPTIVE.fix(_words(settings), finding, settings=settings)]


def _words(s: Settings) -> str:
    return f"train with {'AdamW' if s['weight_decay'] else 'Adam'} at rate {float(s['lr']):.3g} in place of SGD"


def put_adam(treated: TreatedWorkload, p: Fix) -> None:
    """All groups keep their ratio to the first one's rate; momentum is forgotten. Without decay AdamW is Adam."""
    old = treated.optimizer
    if type(old) is not torch.optim.SGD:
        raise Inapplicable(f"{type(old).__name__} is not SGD")
    first = float(old.param_groups[0]["lr"])
    if not first:
        raise Inapplicable("the optimizer has no learning rate")
    rate, decay = float(p.settings["lr"]), float(p.settings["weight_decay"])
    groups = []
    for group in old.param_groups:
        factor = rate / first
        kept: dict[str, Any] = {name: group[name] for name in ("maximize", "foreach", "differentiable", "fused") if name in group}
        own = {"lr": float(group["lr"]) * factor, "weight_decay": min(decay, float(group["weight_decay"]))}
        if "initial_lr" in group:
            own["initial_lr"] = group["initial_lr"] * factor
        groups.append({"params": list(group["params"]), **kept, **own})
    treated.replace_optimizer(torch.optim.AdamW(groups))


ADAPTIVE = RemedyDefinition(
    "adaptive-optimizer",
    "Adam in place of SGD",
    "optimizer",
    "unsafe",
    "Kingma and Ba 2015, Adam; Zhang et al. 2020, Why are Adaptive Methods Good for Attention Models?",
    propose_adam,
    put_adam,
    checkpoint="a saved state of the optimizer no longer fits; the model's does",
    strengths=(Strength("lr", USUAL_RATE, 1e-5, 0.1),),
    wording=_words,
)

REMEDIES = (ADAPTIVE,)
