"""Treatments with a penalty on the weights: L1, L2, Elastic Net; and of regularization as a whole: less of all kinds, early stopping.

Strengths are measured in the loss: 1 makes the penalty at the start as large as the loss of the data.
"""

import math

import torch
from torch import nn

from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength, regularizing
from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Unwritable
from gradcheck.remedies.loss.form import set_smoothing
from gradcheck.remedies.modules.hooks import PenaltyHook, Proximal
from gradcheck.remedies.optimizer.settings import spare_vectors, weaken_penalty
from gradcheck.remedies.optimizer.write_settings import define, spelled_there, with_name
from gradcheck.remedies.regularization.dropout import apply_lower_dropout, places_of
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.workload.treated import TreatedWorkload

MEAN_OVER_RMS = 0.8  # of |w|, for normal weights; 0.87 for uniform ones
L1_STRENGTH, L2_STRENGTH, MIXTURE = 0.3, 0.1, 0.5
COUPLED = (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax)


def penalised(m: Measurement) -> list[Parameter]:
    """Weights proper: no biases, gains and embeddings."""
    tables = {name for x in m.layers if x.kind == "embedding" for name in x.parameters}
    return [p for p in m.parameters if p.trainable and len(p.shape) >= 2 and p.name not in tables and p.steps]


def units(m: Measurement) -> tuple[float, float] | None:
    """Factors l1 of ||w||_1 and l2 of ||w||^2 / 2 that make either penalty as large as the loss at the start."""
    start = m.chance if m.pretrained and m.chance else (m.probe.losses[0] if m.probe.losses else math.nan)
    norms = [p.steps[0].norm for p in penalised(m)]
    squares = sum(n * n for n in norms)
    sums = sum(MEAN_OVER_RMS * n * p.count**0.5 for n, p in zip(norms, penalised(m), strict=True))
    if not (math.isfinite(start) and start and math.isfinite(squares) and squares > 0):
        return None
    return abs(start) / sums, 2 * abs(start) / squares


def _with_penalties(s: Settings) -> dict[str, Setting]:
    """The factors of both norms, from the strength, the share of L1 in it, and what a strength of 1 stands for."""
    share, strength = float(s["l1_ratio"]), float(s["strength"])
    return {**s, "l1": strength * share * float(s["unit_l1"]), "l2": strength * (1 - share) * float(s["unit_l2"])}


def _penalty(treatment: RemedyDefinition, finding: Finding | None, m: Measurement, **settings: Setting) -> list[Fix]:
    unit = units(m)
    return [treatment.with_settings(finding, **settings, unit_l1=unit[0], unit_l2=unit[1])] if unit is not None else []


@regularizing(
    "l1",
    "L1 penalty",
    "Tibshirani 1996, Regression Shrinkage and Selection via the Lasso; Parikh and Boyd 2014, Proximal Algorithms",
    strengths=(Strength("strength", L1_STRENGTH, 0.01, 10.0),),
    derive=_with_penalties,
    wording="add an L1 penalty of {l1:.2g} ||w||_1, {strength:.2g} of the loss at the start, by soft thresholding",
)
def l1(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _penalty(l1, finding, m, strength=L1_STRENGTH, l1_ratio=1.0)


@regularizing(
    "l2",
    "L2 penalty",
    "Krogh and Hertz 1991, A Simple Weight Decay Can Improve Generalization",
    strengths=(Strength("strength", L2_STRENGTH, 0.01, 10.0),),
    derive=lambda s: {**s, "weight_decay": float(s["strength"]) * float(s["unit_l2"])},
    wording="add an L2 penalty of {weight_decay:.2g} ||w||^2 / 2, {strength:.2g} of the loss at the start",
)
def l2(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _penalty(l2, finding, m, strength=L2_STRENGTH)


@regularizing(
    "elastic-net",
    "Elastic Net penalty",
    "Zou and Hastie 2005, Regularization and Variable Selection via the Elastic Net",
    strengths=(Strength("strength", L2_STRENGTH, 0.01, 10.0), Strength("l1_ratio", MIXTURE, 0.0, 1.0, log=False)),
    derive=_with_penalties,
    wording="add a penalty of {l1:.2g} ||w||_1 + {l2:.2g} ||w||^2 / 2, {strength:.2g} of the loss at the start, by a proximal step",
)
def elastic_net(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _penalty(elastic_net, finding, m, strength=L2_STRENGTH, l1_ratio=MIXTURE)


def tables(model: nn.Module) -> list[nn.Parameter]:
    """Weights of embeddings: a row without a gradient must not decay."""
    return [x.weight for x in model.modules() if isinstance(x, nn.Embedding | nn.EmbeddingBag) and isinstance(x.weight, nn.Parameter)]


@l1.applies
@elastic_net.applies
def add_proximal(treated: TreatedWorkload, p: Fix) -> None:
    """Soft thresholding after each step; the optimizer's own weight decay stays."""
    Proximal(float(p.settings["l1"]), float(p.settings["l2"]), tables(treated.model)).attach(treated.optimizer)


@l2.applies
def add_penalty(treated: TreatedWorkload, p: Fix) -> None:
    """Weight decay of the optimizer where that is an L2 penalty; else the penalty's gradient, added before each step."""
    decay, optimizer = float(p.settings["weight_decay"]), treated.optimizer
    coupled = isinstance(optimizer, COUPLED) and not any(g.get("decoupled_weight_decay") for g in optimizer.param_groups)
    if not coupled or tables(treated.model):
        PenaltyHook(decay, tables(treated.model)).attach(optimizer)
        return
    for group in optimizer.param_groups:
        group["weight_decay"] = group.get("weight_decay", 0.0) + decay
    spare_vectors(optimizer)


LOW_DROPPED = 0.1
WEAK_DECAY, WEAK_SMOOTHING, WEAK_PENALTY = 1e-4, 0.05, 0.1


@regularizing("less-regularization", "less regularization", "Goodfellow et al. 2016, Deep Learning, chapter 11")
def less_regularization(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Weakens all strong regularization at once: none of it alone was to blame."""
    r = m.regularization
    if r is None or finding is None:
        return []
    settings: dict[str, Setting] = {}
    if any(x.weight_decay > WEAK_DECAY for x in m.parameters):
        settings["weight_decay"] = WEAK_DECAY
    if any(d.rate > LOW_DROPPED for d in r.dropouts):
        settings["rate"] = LOW_DROPPED
    if r.smoothing > WEAK_SMOOTHING:
        settings["smoothing"] = WEAK_SMOOTHING
    if r.penalty is not None and r.penalty.value > WEAK_PENALTY * abs(r.penalty.data):
        settings["divisor"] = float(f"{r.penalty.value / abs(r.penalty.data) / WEAK_PENALTY:.1g}") if r.penalty.data else 10.0
    if not settings:
        return []
    words = {"weight_decay": "weight decay", "rate": "the rate of dropout", "smoothing": "label smoothing"}
    texts = [f"set {word} to {settings[key]:g}" for key, word in words.items() if key in settings]
    texts += [f"divide the penalty by {settings['divisor']:g}"] if "divisor" in settings else []
    settings |= places_of(r.dropouts)
    return [less_regularization.fix(", ".join(texts), finding, layers=tuple(d.layer for d in r.dropouts), settings=settings)]


@less_regularization.applies
def regularise_less(treated: TreatedWorkload, p: Fix) -> None:
    if "weight_decay" in p.settings:
        for group in treated.optimizer.param_groups:
            group["weight_decay"] = min(group.get("weight_decay", 0.0), float(p.settings["weight_decay"]))
    if "smoothing" in p.settings:
        set_smoothing(treated, float(p.settings["smoothing"]), None)
    if "divisor" in p.settings:
        weaken_penalty(treated, float(p.settings["divisor"]))
    if "rate" in p.settings:
        apply_lower_dropout(treated, p)


@regularizing("early-stopping", "early stopping", "Prechelt 1998, Early Stopping, But When?")
def early_stopping(finding: Finding | None, m: Measurement) -> list[Fix]:
    v = m.validation
    when = f" after about {v.lowest_step} steps" if v is not None and v.lowest_step else " where the validation loss is lowest"
    return [early_stopping.fix(f"stop{when}, and keep those weights", finding)]


@early_stopping.applies
def stop_early(treated: TreatedWorkload, p: Fix) -> None:
    """Nothing about the copy changes: the trial keeps the best validation step of one that this was applied to."""


REMEDIES = (l1, l2, elastic_net, less_regularization, early_stopping)


SHRINK = "shrink_weights"


def proximal(p: Fix, context: Context) -> None:
    """Soft thresholding after each step."""
    code = _shrinking(context, number(p, "l1"), number(p, "l2", 0.0))
    with_name(context, f"{{0}}.register_step_post_hook({SHRINK})")
    define(context, SHRINK, code)


def _shrinking(context: Context, l1: float, l2: float) -> str:
    kind, no_grad = spelled_there(context, "torch.optim.Optimizer", "torch.no_grad")
    optimizer = context.measurement.optimizer.name
    if optimizer.startswith(("Adam", "NAdam", "RAdam")):
        rate = (
            "state = optimizer.state[p]\n"
            '                second = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))\n'
            '                rate = group["lr"] / (second.sqrt() + group["eps"])'
        )
    elif optimizer == "SGD":
        rate = 'rate = group["lr"] * (1 - group["dampening"]) / (1 - group["momentum"])'
    else:
        raise Unwritable(f"no proximal step is known for {optimizer}")
    divisor = f" / (1 + rate * {literal(l2, 2)})" if l2 else ""
    penalty = f"{literal(l1, 2)} * ||w||_1" + (f" + {literal(l2, 2)} / 2 * ||w||^2" if l2 else "")
    return f'''
@{no_grad}()
def {SHRINK}(optimizer: {kind}, *_: object) -> None:
    """The proximal step of the penalty {penalty} on weight matrices; small weights become exactly 0."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.ndim >= 2 and p.grad is not None:
                {rate}
                p.copy_(p.sign() * (p.abs() - rate * {literal(l1, 2)}).clamp_min(0){divisor})
'''


WRITERS: dict[str, Writer] = {"l1": proximal, "elastic-net": proximal}
