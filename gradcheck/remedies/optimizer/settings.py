"""Treatments of the optimizer's settings: its rate, Adam's epsilon, momentum; and Adam in place of SGD."""

import math
from typing import Any

import torch

from gradcheck.analysis.convergence import DIVERGED, best_experiment, depends_on_order, training_outcome
from gradcheck.analysis.update_sizes import update_ratio
from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

BEST_RATIO = 0.02  # update over weight at step 10; the same for SGD, momentum and Adam (calibration E3: 0.019 to 0.023)
LARGEST_RATIO = 1.0  # updates as large as the weights: training is breaking down, and larger ones say no more about the rate
USUAL_EPSILON, SMALL_EPSILON = 1e-8, 1e-12
USUAL_MOMENTUM = 0.9


def rounded(value: float) -> float:
    """Two significant digits: no one writes a rate with more."""
    return float(f"{value:.2g}")


def lower_rate(m: Measurement) -> float:
    """That of the training at a lower one that learned best; else what brings an update to 2 % of its weight, or a good deal less."""
    rate, run, ratio = m.optimizer.lr, best_experiment(m), update_ratio(m)
    if run is not None and run.lr and run.lr < rate:
        return rounded(run.lr / 3) if max(run.losses) > DIVERGED * run.losses[0] else run.lr  # it jumped before it learned
    wanted = rate * BEST_RATIO / min(ratio, LARGEST_RATIO) if ratio else rate
    if training_outcome(m) == "diverges" and not depends_on_order(m):
        return rounded(min(wanted, rate / 100))
    return rounded(min(wanted, rate / 3))


def higher_rate(m: Measurement) -> float:
    rate, run, ratio = m.optimizer.lr, best_experiment(m), update_ratio(m)
    if run is not None and run.lr and run.lr > rate:
        return run.lr
    wanted = rate * BEST_RATIO / ratio if ratio and math.isfinite(ratio) else rate
    return rounded(max(wanted, 3 * rate))


def propose_lower(finding: Finding | None, m: Measurement) -> list[Fix]:
    return [at_rate(LOWER, finding, lower_rate(m))] if m.optimizer.lr > 0 else []


def propose_higher(finding: Finding | None, m: Measurement) -> list[Fix]:
    return [at_rate(RAISE, finding, higher_rate(m))] if m.optimizer.lr > 0 else []


def at_rate(treatment: RemedyDefinition, finding: Finding | None, rate: float) -> Fix:
    settings = {"lr": rate}
    return treatment.fix(_rate_words(settings), finding, settings=settings)


def _rate_words(s: Settings) -> str:
    return f"set the learning rate to {s['lr']:.3g}"


def set_rate(treated: TreatedWorkload, p: Fix) -> None:
    """All groups keep their ratio to the first one."""
    groups = treated.optimizer.param_groups
    now = float(groups[0].get("lr") or 0.0) if groups else 0.0
    if not now:
        raise Inapplicable("the optimizer has no learning rate")
    factor = float(p.settings["lr"]) / now
    for group in groups:
        group["lr"] = group["lr"] * factor
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * factor


def propose_epsilon(finding: Finding | None, m: Measurement) -> list[Fix]:
    eps = m.optimizer.eps
    if not eps or (finding is None and eps <= USUAL_EPSILON):
        return []
    new = USUAL_EPSILON if eps > USUAL_EPSILON else SMALL_EPSILON
    return [EPSILON.fix(f"set eps to {new:g} (now {eps:g})", finding, settings={"eps": new})]


def set_epsilon(treated: TreatedWorkload, p: Fix) -> None:
    groups = [g for g in treated.optimizer.param_groups if isinstance(g.get("eps"), (int, float))]
    if not groups:
        raise Inapplicable(f"{type(treated.optimizer).__name__} has no epsilon")
    for group in groups:
        group["eps"] = float(p.settings["eps"])


def propose_momentum(finding: Finding | None, m: Measurement) -> list[Fix]:
    if m.optimizer.adaptive or m.optimizer.momentum <= USUAL_MOMENTUM:
        return []
    text = f"set the momentum to {USUAL_MOMENTUM} (now {m.optimizer.momentum:g})"
    return [MOMENTUM.fix(text, finding, settings={"momentum": USUAL_MOMENTUM})]


def set_momentum(treated: TreatedWorkload, p: Fix) -> None:
    groups = [g for g in treated.optimizer.param_groups if g.get("momentum")]
    if not groups:
        raise Inapplicable(f"{type(treated.optimizer).__name__} has no momentum")
    for group in groups:
        group["momentum"] = float(p.settings["momentum"])


_RATE = (Strength("lr", 1e-3, 1e-5, 1.0),)
LOWER = RemedyDefinition(
    "lower-learning-rate",
    "lower learning rate",
    "optimizer",
    "safe",
    "Smith 2017, Cyclical Learning Rates for Training Neural Networks",
    propose_lower,
    set_rate,
    strengths=_RATE,
    wording=_rate_words,
)
RAISE = RemedyDefinition(
    "raise-learning-rate",
    "higher learning rate",
    "optimizer",
    "safe",
    "Smith 2017, Cyclical Learning Rates for Training Neural Networks",
    propose_higher,
    set_rate,
    strengths=_RATE,
    wording=_rate_words,
)
EPSILON = RemedyDefinition(
    "adam-epsilon",
    "Adam's epsilon",
    "optimizer",
    "safe",
    "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities",
    propose_epsilon,
    set_epsilon,
)

MOMENTUM = RemedyDefinition(
    "lower-momentum",
    "shorter momentum",
    "optimizer",
    "safe",
    "Sutskever et al. 2013, On the importance of initialization and momentum in deep learning",
    propose_momentum,
    set_momentum,
)
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

REMEDIES = (ADAPTIVE, LOWER, RAISE, EPSILON, MOMENTUM)
