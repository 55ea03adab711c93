"""Treatments of regularization as a whole: less of all kinds, and early stopping."""

from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.loss.label_smoothing import set_smoothing
from gradcheck.remedies.optimizer.weight_decay import weaken_penalty
from gradcheck.remedies.regularization.dropout import lower_dropout, places_of
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload

LOW_DROPPED = 0.1
WEAK_DECAY, WEAK_SMOOTHING, WEAK_PENALTY = 1e-4, 0.05, 0.1


def propose_less(finding: Finding | None, m: Measurement) -> list[Fix]:
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
    return [LESS.fix(", ".join(texts), finding, layers=tuple(d.layer for d in r.dropouts), settings=settings)]


def regularise_less(treated: TreatedWorkload, p: Fix) -> None:
    if "weight_decay" in p.settings:
        for group in treated.optimizer.param_groups:
            group["weight_decay"] = min(group.get("weight_decay", 0.0), float(p.settings["weight_decay"]))
    if "smoothing" in p.settings:
        set_smoothing(treated, float(p.settings["smoothing"]), None)
    if "divisor" in p.settings:
        weaken_penalty(treated, float(p.settings["divisor"]))
    if "rate" in p.settings:
        lower_dropout(treated, p)


def propose_stop(finding: Finding | None, m: Measurement) -> list[Fix]:
    v = m.validation
    when = f" after about {v.lowest_step} steps" if v is not None and v.lowest_step else " where the validation loss is lowest"
    return [STOP.fix(f"stop{when}, and keep those weights", finding)]


def stop_early(treated: TreatedWorkload, p: Fix) -> None:
    """Nothing about the copy changes: the trial keeps the best validation step of one that this was applied to."""


LESS = RemedyDefinition(
    "less-regularization",
    "less regularization",
    "regularization",
    "safe",
    "Goodfellow et al. 2016, Deep Learning, chapter 11",
    propose_less,
    regularise_less,
)
STOP = RemedyDefinition(
    "early-stopping",
    "early stopping",
    "regularization",
    "safe",
    "Prechelt 1998, Early Stopping, But When?",
    propose_stop,
    stop_early,
)

REMEDIES = (LESS, STOP)
