"""Treatments of the optimizer's settings: its rate, Adam's epsilon, momentum; weight decay; and Adam in place of SGD."""

import math
from typing import Any

import torch
from torch import nn

from gradcheck.analysis.convergence import DIVERGED, best_experiment, depends_on_order, training_outcome
from gradcheck.analysis.update_sizes import gentle_decay, update_ratio
from gradcheck.measure.checks.without_regularization import without_penalty
from gradcheck.remedies.definition import Strength, optimizing, regularizing
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


_RATE = (Strength("lr", 1e-3, 1e-5, 1.0),)


@optimizing(
    "lower-learning-rate",
    "lower learning rate",
    "Smith 2017, Cyclical Learning Rates for Training Neural Networks",
    strengths=_RATE,
    wording="set the learning rate to {lr:.3g}",
)
def lower_learning_rate(finding: Finding | None, m: Measurement) -> list[Fix]:
    return [lower_learning_rate.with_settings(finding, lr=lower_rate(m))] if m.optimizer.lr > 0 else []


@optimizing(
    "raise-learning-rate",
    "higher learning rate",
    "Smith 2017, Cyclical Learning Rates for Training Neural Networks",
    strengths=_RATE,
    wording="set the learning rate to {lr:.3g}",
)
def raise_learning_rate(finding: Finding | None, m: Measurement) -> list[Fix]:
    return [raise_learning_rate.with_settings(finding, lr=higher_rate(m))] if m.optimizer.lr > 0 else []


@lower_learning_rate.applies
@raise_learning_rate.applies
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


@optimizing(
    "adam-epsilon", "Adam's epsilon", "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities"
)
def adam_epsilon(finding: Finding | None, m: Measurement) -> list[Fix]:
    eps = m.optimizer.eps
    if not eps or (finding is None and eps <= USUAL_EPSILON):
        return []
    new = USUAL_EPSILON if eps > USUAL_EPSILON else SMALL_EPSILON
    return [adam_epsilon.fix(f"set eps to {new:g} (now {eps:g})", finding, settings={"eps": new})]


@adam_epsilon.applies
def set_epsilon(treated: TreatedWorkload, p: Fix) -> None:
    groups = [g for g in treated.optimizer.param_groups if isinstance(g.get("eps"), (int, float))]
    if not groups:
        raise Inapplicable(f"{type(treated.optimizer).__name__} has no epsilon")
    for group in groups:
        group["eps"] = float(p.settings["eps"])


@optimizing(
    "lower-momentum", "shorter momentum", "Sutskever et al. 2013, On the importance of initialization and momentum in deep learning"
)
def lower_momentum(finding: Finding | None, m: Measurement) -> list[Fix]:
    if m.optimizer.adaptive or m.optimizer.momentum <= USUAL_MOMENTUM:
        return []
    text = f"set the momentum to {USUAL_MOMENTUM} (now {m.optimizer.momentum:g})"
    return [lower_momentum.fix(text, finding, settings={"momentum": USUAL_MOMENTUM})]


@lower_momentum.applies
def set_momentum(treated: TreatedWorkload, p: Fix) -> None:
    groups = [g for g in treated.optimizer.param_groups if g.get("momentum")]
    if not groups:
        raise Inapplicable(f"{type(treated.optimizer).__name__} has no momentum")
    for group in groups:
        group["momentum"] = float(p.settings["momentum"])


USUAL_RATE, MOST_DECAY = 1e-3, 0.01  # AdamW's defaults in torch


@optimizing(
    "adaptive-optimizer",
    "Adam in place of SGD",
    "Kingma and Ba 2015, Adam; Zhang et al. 2020, Why are Adaptive Methods Good for Attention Models?",
    applicability="unsafe",
    checkpoint="a saved state of the optimizer no longer fits; the model's does",
    strengths=(Strength("lr", USUAL_RATE, 1e-5, 0.1),),
    wording=lambda s: f"train with {'AdamW' if s['weight_decay'] else 'Adam'} at rate {s['lr']:.3g} in place of SGD",
)
def adaptive_optimizer(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Adam for SGD, as AdamW where there is weight decay, of which no more is left than AdamW's default."""
    if m.optimizer.name != "SGD" or m.optimizer.lr <= 0:
        return []
    decay = max((x.weight_decay for x in m.parameters), default=m.optimizer.weight_decay)
    return [adaptive_optimizer.with_settings(finding, lr=USUAL_RATE, weight_decay=min(decay, MOST_DECAY))]


@adaptive_optimizer.applies
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


USUAL_DECAY = 0.01  # AdamW's default
COUPLED = ("Adam", "NAdam", "RAdam")  # those of torch that can decouple their decay


@optimizing(
    "decoupled-weight-decay",
    "decoupled weight decay",
    "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization",
    strengths=(Strength("weight_decay", USUAL_DECAY, 1e-4, 3.0),),
    wording="let weight decay {weight_decay:.3g} shrink the weights themselves (AdamW), not pass through the moments",
)
def decoupled_weight_decay(finding: Finding | None, m: Measurement) -> list[Fix]:
    o = m.optimizer
    if o.name not in (*COUPLED, "AdamW") or (finding is None and o.decoupled and o.weight_decay > 0):
        return []
    return [decoupled_weight_decay.with_settings(finding, weight_decay=USUAL_DECAY)]


@decoupled_weight_decay.applies
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


@optimizing(
    "weight-decay-groups",
    "no weight decay on biases and gains",
    "He et al. 2019, Bag of Tricks for Image Classification with Convolutional Neural Networks",
)
def weight_decay_groups(finding: Finding | None, m: Measurement) -> list[Fix]:
    decayed = [x for x in m.parameters if x.trainable and x.groups and x.weight_decay > 0]
    vectors = [x for x in decayed if len(x.shape) <= 1]
    if not vectors:
        return []
    text = f"put the {len(vectors)} biases and gains into a group without weight decay"
    layers = tuple(dict.fromkeys(x.layer for x in vectors))
    settings: dict[str, Setting] = {"weight_decay": max(x.weight_decay for x in decayed)}
    return [weight_decay_groups.fix(text, finding, layers=layers, settings=settings)]


@weight_decay_groups.applies
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


@regularizing(
    "weaker-weight-decay",
    "weaker weight decay",
    "Wang and Aitchison 2024, How to set AdamW's weight decay as you scale model and dataset size",
)
def weaker_weight_decay(finding: Finding | None, m: Measurement) -> list[Fix]:
    """As the rule says it; a penalty in the loss comes to a tenth of the loss."""
    penalty = m.regularization.penalty if m.regularization is not None else None
    if penalty is not None and (finding is None or "penalty" in finding.message):
        divisor = float(f"{penalty.value / max(abs(penalty.data), 1e-12) / 0.1:.1g}")
        text = f"divide the factor of the penalty in the loss by {divisor:g}: it is then a tenth of the loss"
        return [weaker_weight_decay.fix(text, finding, settings={"divisor": divisor})] if divisor > 1 else []
    strongest = max((x.weight_decay for x in m.parameters), default=m.optimizer.weight_decay)
    if strongest <= 0 or m.optimizer.lr <= 0:
        return []
    decay = gentle_decay(m, strongest)
    return [weaker_weight_decay.fix(f"set weight_decay to {decay:g} (now {strongest:g})", finding, settings={"weight_decay": decay})]


@weaker_weight_decay.applies
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


REMEDIES = (
    adaptive_optimizer,
    lower_learning_rate,
    raise_learning_rate,
    adam_epsilon,
    lower_momentum,
    decoupled_weight_decay,
    weight_decay_groups,
    weaker_weight_decay,
)
