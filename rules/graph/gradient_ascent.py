"""GRAPH004: gradient-ascent."""

from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.types.checks import IdleTerm
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.loop import LoopFacts
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule

# Losses that are never negative, so that a program that lowers minus one of them is lowering something without a bound.
NON_NEGATIVE_LOSSES = frozenset(
    (
        "cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss huber_loss "
        "multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss soft_margin_loss hinge_embedding_loss "
        "triplet_margin_loss margin_ranking_loss ctc_loss"
    ).split()
)
DENSITY_LOSSES = frozenset(("gaussian_nll_loss", "poisson_nll_loss"))  # negative where the density exceeds 1: no fault


@rule(
    "GRAPH004",
    up_to="error",
    needs=("probe", "losses"),
    wants=("terms",),
    limits={
        "cosine": Limit(-0.05, "cosine", "a first step along the negative gradient has a cosine of 1 (SGD) or mean|g| / rms(g) > 0 (Adam)"),
        "decayed_cosine": Limit(
            -0.5, "cosine", "weight decay and coupled terms can turn a first step sideways, but not against the gradient"
        ),
        "away": Limit(0.95, "of the gradient", "0 of a loss that compares outputs with their targets, 1 of one whose sign is flipped"),
    },
    explains=("OPT001", "OPT007", "OPT002", "LOSS005", "LOSS003", "NUM001", "GRAD002", "ACT002", "ACT001", "GRAD004", "ACT004", "CLIP001"),
)
def gradient_ascent(m: Measurement, limits: Limits) -> Verdict:
    """Training raises the loss, or lowers one that has no lower bound.

    ## What it finds
    A flipped sign: an optimizer that climbs (`maximize=True`, a negative rate, a hand-made update with the wrong sign), a
    loss that is never negative but is subtracted, a total that falls far below zero faster and faster, and a loss written by
    hand that leads every output away from its target, however slowly it falls. A focal loss whose factor favours the easy samples.
    PPO's clipped ratio of probabilities upside down, or its objective with the wrong sign. The loss of a generator that moves the
    scores of its samples the same way as its discriminator's does.

    ## Why it matters
    The model is trained to be wrong, and the better the optimizer works the worse it gets.

    ## How it is measured
    The cosine between the optimizer's first update and the negative gradient; d(total loss) / d(each known loss); the
    probe training, for a loss that runs away below zero; and d(loss) / d(outputs) after it, where the batch holds one target that is a
    class for each output or a map of 0 and 1: the share of the gradient that lowers the outputs of the right class, or
    of a 1, and the share that raises the others; the lesser counts.

    ## Limits and their sources
    `cosine` -0.05: a descent step has a positive cosine, 1 for SGD and mean|g| / rms(g) for Adam's first step.
    `decayed-cosine` -0.5: applies instead when the optimizer has weight decay, whose share of a step can point anywhere.
    `away` 0.95: a loss that compares outputs with their targets comes to 0, the same with its sign flipped to 1. For
    maps of 0 and 1 it is a warning: the script may mean the complement. The factor of a focal loss comes to -1, upside down to 1: a
    warning. A ratio that is clipped beside itself is an error where what is trained stands below its line, and a warning where the
    loss rises with the lesser of both: the advantage may be a cost. Of two trainings, where the loss of one goes through the weights of
    the other: a warning where both losses move what the other's model gives for the same samples in one direction.

    ## When to ignore it
    When a term is maximised on purpose, as in adversarial training. For actions that the model drew itself, beside other losses,
    and where the loss goes through weights that another optimizer trains, that is advice only.

    ## Example
    ```python
    loss = -nn.functional.cross_entropy(model(x), y)
    ```

    ## Use instead
    ```python
    loss = nn.functional.cross_entropy(model(x), y)
    ```

    ## References
    PyTorch documentation: `torch.optim.SGD`, argument `maximize`.
    """
    uphill = _uphill_steps(m, limits)
    if uphill is not None:
        return [uphill]
    away = next((t for t in m.idle_terms if t.kind == "away" and t.value >= limits["away"]), None)
    if away is not None:
        return [(_easy if away.operation == "easy" else _away)(away, limits["away"])]
    negated = [c for c in m.losses if c.function in NON_NEGATIVE_LOSSES and (c.weight_in_total or 0.0) < 0]
    if negated and not m.optimizer.maximize:
        return [_negated(m, c) for c in negated]
    turned = next((t for t in m.idle_terms if t.kind == "ratio"), None)
    if turned is not None:
        return [_turned(turned)]
    if m.loop is not None and m.loop.along:
        return [_along(m.loop)]
    unbounded = _unbounded(m)
    if unbounded is None and m.ascent is None:
        return not_measured("the direction of the first update was not looked at")
    return [unbounded] if unbounded is not None else []


def _uphill_steps(m: Measurement, limits: Limits) -> Finding | None:
    """The optimizer itself climbs."""
    if not m.optimizer.given:
        return None
    if m.optimizer.maximize:
        return _maximizing(m)
    if m.ascent is None:
        return None
    limit = limits["cosine"] if m.optimizer.weight_decay == 0 else limits["decayed_cosine"]
    if not m.ascent.cosine < limit:
        return None
    return found(
        "error",
        f"the first step of {m.optimizer.name} goes uphill: its cosine with the negative gradient is "
        f"{number(m.ascent.cosine)} (limit {number(limit)}); training raises the loss",
        location=m.optimizer.site,
        evidence=Evidence("cosine of the first update with the negative gradient", m.ascent.cosine, limit, "<"),
        remedies=Remedy("flip-sign", "subtract the gradient: a positive learning rate, and maximize=False", "safe"),
        confirmed=BY_VALUE,
    )


def _maximizing(m: Measurement) -> Finding | None:
    """`maximize=True` is right for an objective, wrong for a loss; which one it is shows only for known losses."""
    known = [c for c in m.losses if c.function in NON_NEGATIVE_LOSSES]
    if known and all((c.weight_in_total or 0.0) < 0 for c in known):
        return None
    severity: Severity = "error" if known else "info"
    by_hand = m.loop is not None and m.loop.by_hand
    how = "the update adds the gradient to the weights (a loss needs it subtracted)"
    if not by_hand:
        how = f"the optimizer {m.optimizer.name} has maximize=True (a loss needs False)"
    start = f", from {number(m.probe.losses[0])} at the first step" if m.probe.losses else ""
    what = f"it raises {known[0].function}{start}" if known else f"it raises the objective{start}; right only if that is meant to grow"
    return found(
        severity,
        f"{how}: {what}",
        location=m.optimizer.site or (known[0].site if known else None),
        evidence=Evidence("maximize", 1, 0, ">"),
        remedies=Remedy("flip-sign", "subtract the gradient" if by_hand else "drop maximize=True", "safe"),
        confirmed=BY_VALUE,
    )


def _unbounded(m: Measurement) -> Finding | None:
    if m.ascent is None or not m.ascent.unbounded or any(c.function in DENSITY_LOSSES for c in m.losses) or _in_a_game(m):
        return None  # an opponent that stands still in the probe, as a critic does, can be outrun without end
    end = m.probe.losses[-1] if m.probe.losses else float("nan")
    term = next((t for t in m.idle_terms if t.kind == "runaway" and t.site), None)
    whose = f", by a term of this sum ({number(term.value)})" if term else ""
    asked = m.loop.backward_site if m.loop is not None else None
    return found(
        "error",
        f"the loss has no lower bound: the probe took it to {number(end)} (expected to stay above 0){whose} "
        "and it falls faster and faster; training runs away",
        location=term.site if term else next((c.site for c in m.losses if c.site), asked),
        evidence=Evidence("loss at the end of the probe", end, 0.0, "<"),
        remedies=Remedy("flip-sign", "minimise a loss that is bounded below; check the sign of each term", "unsafe"),
        confirmed=f"by the probe: the loss falls without bound, to {number(end)}",
    )


def _in_a_game(m: Measurement) -> bool:
    """Whether what this training raises another one lowers."""
    return m.loop is not None and m.loop.opposed


def _away(term: IdleTerm, limit: float) -> Finding:
    of_classes = term.operation == "classes"
    outputs = "the output of the right class, and raise the others" if of_classes else "outputs whose target is 1, and raise those of 0"
    return found(
        "error" if of_classes else "warning",
        f"the loss leads away from the targets: to lower it, training has to lower {outputs}, by {percent(term.value)} of the gradient "
        f"(limit {percent(limit)}); its sign is flipped",
        location=term.site,
        evidence=Evidence("gradient that leads away from the targets", term.value, limit, ">=", "of the gradient"),
        remedies=Remedy("flip-sign", "minimise what grows with the error: 1 - dice, -log_prob, -accuracy", "unsafe"),
        confirmed=BY_VALUE,
    )


def _easy(term: IdleTerm, limit: float) -> Finding:
    """A modulating factor upside down, as p instead of 1 - p in a focal loss."""
    return found(
        "warning",
        f"the factor of each sample's loss falls as that loss rises (rank correlation {number(-term.value)}, limit {number(-limit)}), and "
        "training can lower the product by a greater error: it follows the easy samples and leads away from the hard ones",
        location=term.site,
        evidence=Evidence("rank correlation of the factor with the loss", -term.value, -limit, "<="),
        remedies=Remedy("flip-sign", "let the factor grow with the error, as (1 - p) ** gamma does; detach it if it is meant", "unsafe"),
    )


def _turned(term: IdleTerm) -> Finding:
    """The clipped objective of PPO, which takes good actions for bad ones."""
    if term.operation == "upside-down":
        what = (
            f"the ratio of probabilities that is clipped (mean {number(term.value)}) has the trained policy below its line (expected above)"
        )
        cure = "exponentiate the new log-probabilities minus the old ones"
    else:
        what = f"the loss rises with the clipped objective (expected to fall with it; the mean ratio is {number(term.value)})"
        cure = "minimise minus the lesser of the ratio times the advantage, and of the clipped ratio times it"
    return found(
        "error" if term.operation == "upside-down" else "warning",
        f"{what}: to lower the loss, training makes actions with a positive advantage less likely",
        location=term.site,
        evidence=Evidence("ratio, the mean over the batch", term.value, None, "="),
        remedies=Remedy("flip-sign", cure, "unsafe"),
        confirmed=BY_VALUE,
    )


def _along(loop: LoopFacts) -> Finding:
    """A generator that helps the discriminator: the targets of its loss are those that the other training has for its samples."""
    return found(
        "warning",
        f"this loss moves the scores of its own samples as that of {loop.along} does, by at least 99 % of the gradient (expected 0 %): "
        "it helps the training that it is to work against",
        location=loop.along_site or loop.backward_site,
        evidence=Evidence("gradients of both losses with the same sign, at least", 0.99, 0.0, ">", "of the gradient"),
        remedies=Remedy("flip-sign", "give the samples the target of real ones in this loss", "unsafe"),
    )


def _negated(m: Measurement, call: LossCall) -> Finding:
    weight = call.weight_in_total or 0.0
    total = m.probe.losses[0] if m.probe.losses else weight * (call.value or 0.0)
    runs_away = m.ascent is not None and m.ascent.unbounded
    drawn = call.target_made and call.target_kind != "values"  # actions, as of a policy whose rewards are negative
    wrong = (runs_away or (len(m.losses) == 1 and total < 0)) and not _in_a_game(m) and not drawn
    meaning = (
        "training maximises it, so the model learns to be wrong"
        if wrong
        else "training maximises this term; right for an adversarial one, or for actions with negative rewards"
    )
    return found(
        "error" if wrong else "info",
        f"{call.function} enters the total loss with weight {number(weight)} (expected above 0): {meaning}",
        location=call.site,
        evidence=Evidence(f"d(total loss) / d({call.function})", weight, 0.0, "<"),
        remedies=Remedy("flip-sign", f"add {call.function} to the total instead of subtracting it", "unsafe"),
        confirmed="by the probe: the loss falls without bound" if runs_away else BY_VALUE,
    )
