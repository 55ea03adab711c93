"""The result of a trial in plain words."""

import math
from collections.abc import Sequence
from dataclasses import replace

from gradcheck.analysis.wording import number
from gradcheck.report.formatting import counted
from gradcheck.trials.plan import LONGER
from gradcheck.trials.standings import ComparisonMetric
from gradcheck.types.fix import Effect
from gradcheck.types.trial import Entry

TOWARDS = f"but would not get there in {LONGER:g} times as many steps."
EVEN = 1.5  # an interval is written with ± when its longer side is no more than this many times the shorter one
CALM = 3.0  # largest over median gradient norm of a training without spikes: CLIP001's healthy trainings
REGULARIZING = frozenset(
    "l1 l2 elastic-net dropout early-stopping label-smoothing mixup random-flip random-shift random-crop input-noise token-dropout "
    "decoupled-weight-decay smaller-network".split()
)


def explained(entry: Entry, base: Entry, metric: ComparisonMetric, falling: bool = False) -> Entry:
    """The entry with its sentence. `falling`: the untreated model's loss was, when its training ended."""
    return replace(entry, text=sentence(entry, base, metric, falling))


def sentence(entry: Entry, base: Entry, metric: ComparisonMetric, falling: bool = False) -> str:
    effect = entry.effect
    if entry.status == "inapplicable":
        return f"{entry.title} is not applicable: {entry.reason}"
    if entry.status == "failed":
        return f"{entry.title} could not be tried: {entry.reason}"
    if entry.status == "untried" or effect is None:
        return f"{entry.title} was not tried: time ran out"
    if entry.status == "diverged":
        return f"{entry.title} diverges in {entry.diverged} of {counted(entry.seeds, 'seed')}"
    if entry.status == "helps" and math.isinf(effect.base):
        trained = f"{effect.metric} {number(effect.treated)}"
        return f"{entry.title} trains ({trained}) where the untreated model diverges in {base.diverged} of {counted(base.seeds, 'seed')}"
    if entry.status in ("helps", "worse"):
        return f"{entry.title} {moves(effect)}{sparse(entry, base)}"
    if entry.status == "promising":
        tried = f"in {counted(entry.seeds, 'seed')} of the screening"
        return f"{entry.title} {moves(effect)} {tried}; whether that is chance was not tested in the final"
    return f"{entry.title} {nothing(effect, metric)}{why_nothing(entry, base, metric, falling)}{sparse(entry, base)}"


def moves(effect: Effect) -> str:
    """`lowers validation loss by 0.12 ± 0.03 (1.5 -> 1.38)`."""
    verb = "lowers" if effect.difference < 0 else "raises"
    return f"{verb} {effect.metric} by {amount(effect)} ({number(effect.base)} -> {number(effect.treated)})"


def amount(effect: Effect) -> str:
    ends = sorted((abs(effect.difference - effect.low), abs(effect.high - effect.difference)))
    if not math.isfinite(ends[1]):
        return number(abs(effect.difference))
    if ends[1] <= EVEN * ends[0]:
        return f"{number(abs(effect.difference))} ± {number(sum(ends) / 2)}"
    low, high = sorted((effect.low, effect.high), key=abs) if effect.low * effect.high > 0 else (effect.low, effect.high)
    sign = 1 if low * high < 0 else math.copysign(1, effect.difference)
    return f"{number(abs(effect.difference))} ({number(sign * low)} to {number(sign * high)})"


def nothing(effect: Effect, metric: ComparisonMetric) -> str:
    if effect.difference == 0 or not math.isfinite(effect.difference):
        return "changes nothing"
    shown = f"{'+' if effect.difference > 0 else '-'}{amount(effect)}"
    small = effect.lower_is_better and abs(effect.difference) < metric.relevant
    return f"changes {effect.metric} by {shown}: {'too little to count' if small else 'that may be chance'}"


def why_nothing(entry: Entry, base: Entry, metric: ComparisonMetric, falling: bool = False) -> str:
    """Why the remedy has nothing to do in the untreated training."""
    calm = base.gradient_spread is not None and base.gradient_spread < CALM
    if "clip" in entry.name and "+" not in entry.name and calm:
        return f"; your gradients never spike (the largest is {number(base.gradient_spread or 0.0)} times the median)"
    gap = next((s.median for s in base.scores if s.metric == "generalization gap"), None)
    if entry.name in REGULARIZING and gap is not None and gap < metric.relevant:
        so_far = f"after {counted(base.steps, 'step')}, too few to overfit" if falling else "validation loss is as low as training loss"
        return f"; there is nothing to regularize: {so_far}"
    return ""


def sparse(entry: Entry, base: Entry) -> str:
    if entry.sparsity is None or entry.sparsity <= (base.sparsity or 0.0) + 0.01:
        return ""
    return f"; {entry.sparsity:.0%} of the weights are exactly zero"


def too_short(entries: Sequence[Entry], base: Entry) -> str:
    """What to say of a trial that ended before the untreated model had learned what it can."""
    ahead = [e for e in entries if e.status in ("helps", "promising", "undecided")]
    names = [e.text if e.status == "helps" and i == 0 else e.title for i, e in enumerate(ahead[:4])]
    seen = f" Ahead so far: {'; '.join(names)}. That is no recommendation: more steps may undo it." if ahead else ""
    steps = counted(base.steps, "step")
    return f"After {steps} the untreated model's loss was still falling; too short to show overfitting: raise --budget.{seen}"


def verdict(entries: Sequence[Entry], recommended: str, base: Entry, metric: ComparisonMetric, ended: str, falling: bool = False) -> str:
    """The trial in one or two sentences; in front, whether it was too short to tell."""
    chosen = next((e for e in entries if e.name == recommended), None) if recommended else None
    cut = {"budget": " Time ran out before the end.", "interrupted": " It was interrupted: what is shown is partial."}.get(ended, "")
    if chosen is not None:
        others = [e for e in entries if e.status == "helps" and e is not chosen and " + " not in e.name]
        more = f" Also better than untreated: {', '.join(e.title for e in others[:4])}." if others else ""
        further = f" The untreated model was still falling, {TOWARDS}" if falling else ""
        return f"{chosen.text[:1].upper()}{chosen.text[1:]}.{more}{further}{cut}"
    if falling:
        return too_short(entries, base) + cut
    tested = [e for e in entries if e.effect is not None]
    hopeful = [e.title for e in entries if e.status in ("promising", "undecided")]
    if not tested:
        return f"Nothing was compared.{cut}"
    if hopeful:
        more = "" if cut else " More seeds would tell: raise the budget."
        return f"Undecided: {', '.join(hopeful[:4])} looked better, but that may be chance.{more}{cut}"
    if base.diverged > base.seeds / 2:
        return f"The untreated model diverges, and none of the {len(tested)} that entered cures that.{cut}"
    least = number(metric.relevant)
    return f"No difference: none of {len(tested)} lowers the {metric.name} by {least} or more beyond chance. Leave the model as it is.{cut}"
