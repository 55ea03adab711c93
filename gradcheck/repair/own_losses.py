"""The losses that a script itself computed, and those of the edited script over the same steps."""

import itertools
import math
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from gradcheck.analysis.convergence import Outcome, outcome, start_and_end
from gradcheck.analysis.wording import number
from gradcheck.training.paired import paired_interval
from gradcheck.types.training import Run

FEWEST = 12  # losses of both; fewer allow no verdict
LAST_SHARE = 0.25  # share of the losses that is compared,
BLOCKS = 5  # in so many groups, whose means count as independent
CLEAR = 0.05  # of how far the better of the two fell: a difference counts if it is larger, and exceeds the noise

Kind = Literal["better", "same", "worse", "unknown"]
Losses = tuple[float, ...]


@dataclass(frozen=True)
class Standing:
    """How the edited script trains compared with the original, or by itself where its loss measures something else."""

    kind: Kind
    numbers: str  # in words for the user
    alone: bool = False  # nothing was compared: the loss measures something else than before
    share: float = 1.0  # of how far the loss of the script as it is fell: how far that of the edited one did
    learns: bool = False  # the loss of the edited script falls

    def text(self, *, hoped: bool = False) -> str:
        """The verdict on the edited script. `hoped`: it was expected to train better."""
        if self.kind == "same" and not self.alone:
            return f"it trains no {'better' if hoped else 'worse'}: {self.numbers}"
        return f"{(_ALONE if self.alone else _BESIDE)[self.kind]}: {self.numbers}"


_KINDS: dict[Outcome, Kind] = {"learns": "better", "stalls": "same", "diverges": "worse", "unknown": "unknown"}
_BESIDE: dict[Kind, str] = {"better": "it trains better", "worse": "it trains worse", "unknown": "nothing is known about its training"}
_ALONE: dict[Kind, str] = {**_BESIDE, "better": "it learns", "same": "it learns nothing"}


def compare(before: Losses, after: Losses, *, ended: bool = False) -> Standing:
    """Compares two series of the same loss. `ended`: the original script failed after its last loss."""
    steps = min(len(before), len(after))
    if not _finite(after[: max(steps, FEWEST)]):
        kind: Kind = "worse" if _finite(before) else "same"
        return Standing(kind, f"its loss is {number(after[_first_bad(after)])} at step {_first_bad(after)}")
    if ended and len(after) > len(before) + 1:
        return Standing("better", f"it takes {len(after)} steps where the script as it is fails after {len(before)}")
    if not _finite(before):
        bad = _first_bad(before)
        if len(after) <= bad:
            return Standing("unknown", f"only {len(after)} steps were seen of it")
        return Standing("better", f"its loss stays finite, where that of the script as it is becomes {number(before[bad])} at step {bad}")
    if steps < FEWEST:
        return Standing("unknown", f"only {steps} losses were seen of it")
    before, after = before[:steps], after[:steps]
    last = max(FEWEST // 2, round(LAST_SHARE * steps))
    a, b = before[-last:], after[-last:]
    start = fmean(before[: max(1, steps // 20)])
    scale = max(abs(start - fmean(a)), abs(start - fmean(b)))
    gap = paired_interval([y - x for x, y in zip(_blocks(a), _blocks(b), strict=True)])
    text = f"its own loss is {number(fmean(b))} instead of {number(fmean(a))} over the last {last} of {steps} steps"
    same = abs(gap.mean) <= CLEAR * scale or gap.low <= 0 <= gap.high
    share = (start - fmean(b)) / (start - fmean(a)) if start > fmean(a) else 1.0
    kind = "same" if same else "better" if gap.mean < 0 else "worse"
    return Standing(kind, text, share=share, learns=_outcome(after) == "learns")


def alone(after: Losses) -> Standing:
    """Whether a loss that measures something other than the original script's falls."""
    if not _finite(after):
        return Standing("worse", f"its loss is {number(after[_first_bad(after)])} at step {_first_bad(after)}", alone=True)
    start, end, _ = start_and_end(_as_run(after))
    text = f"its loss, which measures something else now, goes from {number(start)} to {number(end)} in {len(after)} steps"
    return Standing(_KINDS[_outcome(after)], text, alone=True)


def _as_run(losses: Losses) -> Run:
    return Run("the edited script", losses, batches=max(1, len(losses) // 20))


def _outcome(losses: Losses) -> Outcome:
    return outcome(_as_run(losses))


def _blocks(losses: Losses) -> list[float]:
    edges = [round(i * len(losses) / BLOCKS) for i in range(BLOCKS + 1)]
    return [fmean(losses[a:b]) for a, b in itertools.pairwise(edges)]


def _finite(losses: Losses) -> bool:
    return all(map(math.isfinite, losses))


def _first_bad(losses: Losses) -> int:
    return next(i for i, x in enumerate(losses) if not math.isfinite(x))
