"""How rules put numbers, places and trainings into words."""

import math
import re
from collections.abc import Mapping, Sequence

from gradcheck.analysis.convergence import CLEAR_FALL, any_learned, relapse, relative_decrease, start_and_end, training_outcome, untouched
from gradcheck.analysis.layer_groups import names
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import Run

KEYS = "changes the architecture: old checkpoints do not fit"
COMPUTES = "changes what the model computes; checkpoints still load"
LOSS = "changes the loss: its values cannot be compared with the old ones"
_TRAINED = "changes what is trained"

_REASONS: Mapping[str, tuple[str, ...]] = {
    KEYS: (
        *("insert-normalization", "batch-normalization", "layer-normalization", "group-normalization", "insert-activation", "qk-norm"),
        *("add-residual", "pre-norm", "gated-recurrence", "smaller-network", "shallower-network", "trainable-scale"),
    ),
    "changes the architecture: load old checkpoints with strict=False": ("batch-free-normalization", "remove-bias", "move-dropout"),
    "adds keys to the checkpoint": ("register-modules",),
    LOSS: (
        *("replace-loss", "match-shapes", "average-term", "flip-sign", "guard-domain"),
        *("label-smoothing", "check-term", "asymmetric-sides"),
    ),
    "changes the loss and what the output means": ("remove-output-activation",),
    "changes the optimizer: its saved state does not fit": ("adaptive-optimizer",),
    _TRAINED: ("remove-detach", "remove-hook", "check-reward", "check-pairs", "check-arguments"),
    "changes the gradient": ("fix-backward",),
}
_BY_NAME = {name: reason for reason, names in _REASONS.items() for name in names}


def reason(name: str) -> str:
    """Of a remedy, for "unsafe: ..."."""
    return _BY_NAME.get(name, COMPUTES)


BY_VALUE = "by the measured value alone"
SYNTHETIC = "the data were made up by gradcheck"
SHOWN = 3  # more names than these are counted, not listed


def number(value: float, digits: int = 3) -> str:
    """Three significant digits; whole numbers below a million in full, exponents below 1e-3 and from 1e5: "0.41", "65504", "7.4e-07"."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    size = abs(value)
    if value == round(value) and size < 1e6:
        return f"{value:.0f}"
    if not 1e-3 <= size < 1e5:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{_trimmed(mantissa)}e{exponent}"
    return _trimmed(f"{value:.{max(digits - math.floor(math.log10(size)) - 1, 0)}f}")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(count: int, noun: str) -> str:
    several = noun if noun == "info" else f"{noun.removesuffix('y')}ies" if noun.endswith("remedy") else f"{noun}s"
    return f"{count} {noun if count == 1 else several}"


def percent(x: float) -> str:
    """A share in percent, "61 %"; only a true 0 or 1 reads "0 %" or "100 %"."""
    value = 100 * x
    if not 0 <= x <= 1.01:  # no part of a whole: "246 %", "2.5e+22 %"
        return f"{number(value)} %" if math.isfinite(value) else number(x)
    if value == round(value) or 1 <= value <= 99:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if 0.05 <= value < 99.95 or x > 1 else ("under 0.1 %" if value < 1 else "over 99.9 %")


def layers_in_words(names: Sequence[str]) -> str:
    """Names with runs of indices joined: "blocks.{0..11}.fc1 and head", or "a, b, c and 5 more"."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for name in dict.fromkeys(names):
        parts = _split_at_index(name)
        groups.setdefault((parts[0], parts[2]) if parts else (name,), []).append(parts[1] if parts else -1)
    texts = [_group_in_words(key, indices) for key, indices in groups.items()]
    if len(texts) == 1:
        return texts[0]
    if len(texts) <= SHOWN + 1:
        return f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"{', '.join(texts[:SHOWN])} and {len(texts) - SHOWN} more"


def also_in(group: list[Layer]) -> str:
    return f"; the same in {layers_in_words(names(group))}" if len(group) > 1 else ""


def _split_at_index(name: str) -> tuple[str, int, str] | None:
    match = re.match(r"(|.*?\.)(\d+)(|[.:].*)$", name)
    return (match[1], int(match[2]), match[3]) if match else None


def _group_in_words(key: tuple[str, ...], indices: Sequence[int]) -> str:
    if len(key) == 1:
        return quoted(key[0])
    low, high = min(indices), max(indices)
    if len(indices) == 1:
        middle = str(low)
    elif high - low + 1 == len(indices):
        middle = f"{{{low}..{high}}}"
    else:
        middle = f"{{{','.join(map(str, sorted(indices)[:6]))}{',..' if len(indices) > 6 else ''}}}"
    return quoted(f"{key[0]}{middle}{key[1]}")


def quoted(name: str) -> str:
    """The name of a layer or parameter; in quotation marks where it could be read as a number: "`0.1`"; "the model" where it has none."""
    if not name:
        return "the model"
    return name if name[:1].isalpha() or name[:1] == "_" else f"`{name}`"


def run_in_words(run: Run) -> str:
    """What a training did to the loss: "100 steps moved the loss from 2.31 to 2.29"."""
    steps = f"{len(run.losses)} steps"
    if run.ended == "non-finite":
        return f"the loss is not finite after {steps}"
    start, end = start_and_end(run)[:2]
    first = untouched(run) if run.losses else start
    start = min(start, first) if first < end else start  # of a rise, from what no step had changed
    lapsed = relapse(run, run.chance)
    between = f", after {number(lapsed[0])} by step {lapsed[1]}" if lapsed is not None else ""
    return f"{steps} moved the loss from {number(start)} to {number(end)}{between}"


def probe_failure(m: Measurement) -> str:
    """What confirms an error about the model: "by the probe: ...", or "" when the probe does not confirm it.

    A probe with an optimizer that gradcheck assumed only counts when no experiment at another rate learned either.
    """
    if training_outcome(m) not in ("stalls", "diverges") or (not m.optimizer.given and any_learned(m)):
        return ""
    return f"by the probe: {optimizer_in_words(m)}: {run_in_words(m.probe)}"


def learns_clearly(m: Measurement) -> bool:
    """Whether the loss of the probe fell so far that no measurement can contradict it.

    A significant fall of a few percent is learning too, but a model whose last layers learn what its first ones
    leave of the input shows as much.
    """
    return training_outcome(m) == "learns" and (m.probe.ended == "learned" or relative_decrease(m.probe, m.chance) >= CLEAR_FALL)


def falls_short(m: Measurement) -> bool:
    """Whether the probe fails, or learns only a little; false where it has no verdict."""
    return training_outcome(m) != "unknown" and not learns_clearly(m)


def optimizer_in_words(m: Measurement) -> str:
    return f"{m.optimizer.name} at rate {number(m.optimizer.lr)}"
