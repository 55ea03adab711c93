"""Does a model's output fit the loss that receives it? Pure functions of one LossCall, behind rule LOSS001.

Notation: C classes; logits z in R^C; the floor of a loss is the lowest value that any weights can reach.
A loss of logits that lie in an interval of width w cannot fall below log(1 + (C - 1) exp(-w)): the best prediction puts
the true class at the upper end and all others at the lower one. Probabilities are the case w = 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gradcheck.analysis.activations import BOUNDS
from gradcheck.analysis.wording import number, percent
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.losses import LossCall
from gradcheck.types.rule import Limits

REGRESSION_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
BOUND_SLACK = 1e-3  # rounding, in the units of the output


@dataclass(frozen=True)
class Mismatch:
    """What is wrong between an output and its loss, in words and numbers."""

    severity: Severity
    problem: str  # "softmax before cross_entropy"
    meaning: str  # what follows for training
    evidence: tuple[Evidence, ...]
    remedies: tuple[Remedy, ...]
    about_targets: bool = False  # it is the targets' range that does not fit, not the kind of output


def floor_of_bounded_logits(classes: int, width: float) -> float:
    """Lowest cross entropy [nats] over logits in an interval of the given width: log(1 + (C - 1) exp(-w))."""
    return math.log1p((classes - 1) * math.exp(-width))


def share_outside(mean: float, std: float, low: float, high: float) -> float:
    """Estimated fraction of values outside [low, high], from their mean and std as if they were normal."""
    if std <= 0:
        return float(not low <= mean <= high)
    below = 0.5 * math.erfc((mean - low) / std / math.sqrt(2)) if math.isfinite(low) else 0.0
    above = 0.5 * math.erfc((high - mean) / std / math.sqrt(2)) if math.isfinite(high) else 0.0
    return below + above


def mismatch(call: LossCall, limits: Limits) -> Mismatch | None:
    """The mismatch of one call, or None where the output is what the loss expects or nothing is known."""
    judge = _JUDGES.get(call.function)
    return judge(call, limits) if judge is not None and call.weight_in_total != 0 else None


def _cross_entropy(call: LossCall, limits: Limits) -> Mismatch | None:
    classes = call.classes or 0
    if classes < 2:
        return None
    if call.producer == "log_softmax" or _at_most(call.row_logsumexp_error, limits["row_sum_error"]):
        error = call.row_logsumexp_error or 0.0
        return Mismatch(
            "info",
            "log_softmax before cross_entropy",
            f"cross_entropy applies log_softmax itself; a second one changes nothing: the rows' logsumexp is 0 within {number(error)}",
            (Evidence("largest distance of a row's logsumexp from 0", error, limits["row_sum_error"], "<="),),
            (_remove("log_softmax"),),
        )
    probabilities = _is_distribution(call, limits)
    if call.producer in ("softmax", "sigmoid", "hardsigmoid") or probabilities:
        return _bounded_logits("softmax" if probabilities else call.producer or "softmax", call, limits, 1.0, "error")
    if call.producer in ("relu", "relu6"):
        return Mismatch(
            "error",
            f"{call.producer} before cross_entropy",
            f"cross_entropy takes logits of either sign; here none lies below {number(max(call.input_min, 0.0))} (limit 0), so a "
            "class is ruled out only by raising all others, and a class whose output is 0 gets no gradient",
            (Evidence("smallest logit", call.input_min, 0.0, ">="),),
            (_remove(call.producer),),
        )
    if call.producer == "cosine" and _within(call, -1.0, 1.0):
        return _cosines(call, limits)
    if call.producer in ("tanh", "hardtanh", "softsign") and _within(call, -1.0, 1.0):
        return _bounded_logits(call.producer, call, limits, 2.0, "warning")
    return None


def _floor(quantity: str, floor: float, limit: float) -> Evidence:
    """Below its limit it is a number to look at."""
    return Evidence(quantity, floor, limit if floor > limit else None, ">", "nats")


def _bounded_logits(producer: str, call: LossCall, limits: Limits, width: float, severity: Severity) -> Mismatch:
    classes = call.classes or 2
    floor, chance = floor_of_bounded_logits(classes, width), math.log(classes)
    severity = "error" if floor > limits["floor_share"] * chance else severity
    evidence = [_floor("lowest loss that any weights reach", floor, limits["floor_share"] * chance)]
    if call.row_sum_error is not None and width == 1.0 and producer == "softmax":
        evidence.append(Evidence("largest distance of a row's sum from 1", call.row_sum_error, limits["row_sum_error"], "<="))
    low = "0 and 1" if width == 1.0 else "-1 and 1"
    return Mismatch(
        severity,
        f"{producer} before cross_entropy",
        f"cross_entropy takes logits and applies log_softmax itself; with values between {low} the loss over {classes} classes cannot fall "
        f"below {number(floor)} (chance is {number(chance)}), and its gradient fades before that",
        tuple(evidence),
        (_remove(producer), *((_nll_instead(),) if producer == "softmax" else ())),
    )


def _cosines(call: LossCall, limits: Limits) -> Mismatch:
    bounded = _bounded_logits("cosine similarities", call, limits, 2.0, "info")
    cure = Remedy(
        "scale-logits", "divide the similarities by a temperature (0.05 to 0.5), or multiply them by a scale of 10 to 64", "unsafe"
    )
    return replace(bounded, severity="warning" if bounded.severity == "error" else "info", remedies=(cure,))


def _nll(call: LossCall, limits: Limits) -> Mismatch | None:
    if call.producer == "log_softmax" or (call.classes or 0) < 2:
        return None
    if call.producer == "softmax" or _is_distribution(call, limits):
        return _not_log_probabilities(
            "error", "probabilities", call, "the loss is -p instead of -log p: its gradient vanishes where the prediction is most wrong"
        )
    if call.input_max > BOUND_SLACK:
        return _not_log_probabilities(
            "error", "unnormalised logits", call, "without log_softmax the loss has no lower bound: it falls by scaling the outputs up"
        )
    if call.row_logsumexp_error is not None and call.row_logsumexp_error > limits["logsumexp_error"]:
        return _not_log_probabilities(
            "warning", "log-probabilities that do not sum to 1", call, "the other classes are not pushed down when the true one rises"
        )
    return None


def _log_probability_loss(call: LossCall, _: Limits) -> Mismatch | None:
    """kl_div and ctc_loss: their class axis is not known, so only values that no log-probability has are judged."""
    if call.producer in ("softmax", "sigmoid"):
        return _not_log_probabilities(
            "error", "probabilities", call, "the loss reads them as log-probabilities: it has no meaning, and may fall below zero"
        )
    if call.producer != "log_softmax" and call.input_max > BOUND_SLACK:
        return _not_log_probabilities(
            "error", "unnormalised logits", call, "without log_softmax the loss has no lower bound: it falls by scaling the outputs up"
        )
    return None


def _not_log_probabilities(severity: Severity, what: str, call: LossCall, meaning: str) -> Mismatch:
    evidence = [Evidence("largest input", call.input_max, 0.0, ">")] if call.input_max > 0 else []
    if call.row_logsumexp_error is not None and call.function == "nll_loss":
        evidence.append(Evidence("largest distance of a row's logsumexp from 0", call.row_logsumexp_error, 0.01, ">"))
    instead = "cross_entropy" if call.function == "nll_loss" else f"{call.function} on log_softmax"
    return Mismatch(
        severity,
        f"{what} into {call.function}",
        f"{call.function} takes log-probabilities; {meaning}",
        tuple(evidence),
        (Remedy("replace-loss", f"hand the logits to {instead}, or apply log_softmax over the class axis first", "unsafe"),),
    )


def _binary_with_logits(call: LossCall, limits: Limits) -> Mismatch | None:
    bounds = BOUNDS.get(call.producer or "")
    if bounds is None or not _within(call, *bounds):
        return None
    low, high = bounds
    positive, negative = math.log1p(math.exp(-high)), math.log1p(math.exp(low))  # floors for targets 1 and 0
    floor = max(positive, negative)
    severity: Severity = "error" if floor > limits["floor_share"] * math.log(2) else "warning"
    least, most = (1 / (1 + math.exp(-x)) for x in bounds)
    return Mismatch(
        severity,
        f"{call.producer} before {call.function}",
        f"{call.function} takes logits and applies the sigmoid itself; predictions stay between {least:.2g} and {most:.2g}, and "
        f"the loss of a {'negative' if negative >= positive else 'positive'} sample cannot fall below {number(floor)} (chance is 0.693)",
        (_floor("lowest loss that any weights reach on one class", floor, limits["floor_share"] * math.log(2)),),
        (
            _remove(call.producer or ""),
            Remedy("replace-loss", "or keep the sigmoid and use binary_cross_entropy, which takes probabilities", "unsafe"),
        ),
    )


def _binary(call: LossCall, limits: Limits) -> Mismatch | None:
    low, high = call.input_min, call.input_max
    off = call.target_rows_off or 0.0
    if call.producer == "softmax" and off > limits["target_share"] and _at_most(call.row_sum_error, limits["row_sum_error"]):
        return Mismatch(
            "error",
            "softmax before binary_cross_entropy",
            f"the outputs of a row sum to 1, but {percent(off)} of the rows of targets do not (limit "
            f"{percent(limits['target_share'])}): where several labels are right at once, or none is, no output can say so",
            (Evidence("rows of targets that do not sum to 1", off, limits["target_share"], ">", "of the rows"),),
            (Remedy("replace-loss", "hand the logits to binary_cross_entropy_with_logits, or use a sigmoid for the softmax", "unsafe"),),
        )
    if not (low < 0.0 or high > 1.0):
        return None
    worst, limit = (low, 0.0) if low < 0 else (high, 1.0)
    return Mismatch(
        "error",
        "unbounded outputs into binary_cross_entropy",
        f"binary_cross_entropy takes probabilities in [0, 1] and raises on others; the outputs span [{number(low)}, {number(high)}]",
        (Evidence("output furthest from [0, 1]", worst, limit, "<" if low < 0 else ">"),),
        (
            Remedy(
                "replace-loss",
                "use binary_cross_entropy_with_logits on these outputs; it is also more precise than a sigmoid before binary_cross_entropy",
                "unsafe",
            ),
        ),
    )


def _regression(call: LossCall, limits: Limits) -> Mismatch | None:
    bounds = BOUNDS.get(call.producer or "")
    if bounds is None or call.target_kind != "values" or call.target_min is None or call.target_max is None or not _within(call, *bounds):
        return None
    low, high = bounds
    std = call.target_std or 0.0
    excess = max(low - call.target_min, call.target_max - high)
    if not excess > max(limits["target_excess"] * std, BOUND_SLACK):
        return None
    share = share_outside(call.target_mean if call.target_mean is not None else (call.target_min + call.target_max) / 2, std, low, high)
    below = low - call.target_min >= call.target_max - high
    worst, limit = (call.target_min, low) if below else (call.target_max, high)
    span = f"{'[' if math.isfinite(low) else '('}{number(low)}, {number(high)}{']' if math.isfinite(high) else ')'}"
    return Mismatch(
        "error" if share > limits["target_share"] else "warning",
        f"{call.producer} on the output, but targets outside {span}",
        f"the targets reach from {number(call.target_min)} to {number(call.target_max)}; about {percent(share)} of them "
        f"cannot be predicted by any weights, and {call.function} keeps an error there",
        (
            Evidence("target furthest outside the output's range", worst, limit, "<" if below else ">"),
            Evidence(
                "estimated share of targets out of reach", share, limits["target_share"], ">" if share > limits["target_share"] else "<="
            ),
        ),
        (_remove(call.producer or ""), Remedy("standardize-target", f"or scale the targets into {span}", "advice")),
        about_targets=True,
    )


def _is_distribution(call: LossCall, limits: Limits) -> bool:
    """Rows on the class axis are probabilities: not negative, and each sums to 1."""
    return call.input_min >= 0 and _at_most(call.row_sum_error, limits["row_sum_error"])


def _within(call: LossCall, low: float, high: float) -> bool:
    """The output really stays in the range that its producer's default form has (a hardtanh may have other bounds)."""
    return call.input_min >= low - BOUND_SLACK and call.input_max <= high + BOUND_SLACK


def _at_most(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def _remove(function: str) -> Remedy:
    return Remedy(
        "remove-output-activation",
        f"hand the loss the values before {function}; apply {function} only where predictions are read",
        "unsafe",
    )


def _nll_instead() -> Remedy:
    return Remedy("replace-loss", "or keep probabilities as the output: take log_softmax in place of softmax, and nll_loss", "unsafe")


_JUDGES: dict[str, Callable[[LossCall, Limits], Mismatch | None]] = {
    "cross_entropy": _cross_entropy,
    "nll_loss": _nll,
    "kl_div": _log_probability_loss,
    "ctc_loss": _log_probability_loss,
    "binary_cross_entropy_with_logits": _binary_with_logits,
    "multilabel_soft_margin_loss": _binary_with_logits,
    "binary_cross_entropy": _binary,
    **dict.fromkeys(REGRESSION_LOSSES, _regression),
}
