"""Rules about normalization layers.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

from collections import Counter
from collections.abc import Sequence

from gradcheck.analysis.wording import number
from gradcheck.types.layers import Layer
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, not_applicable, required
from gradcheck.types.structure import Norm

RULES = (
    "missing_normalization deep_batchnorm_without_skips batchnorm_small_batch dropout_before_batchnorm batchnorm_in_eval "
    "batchnorm_momentum bias_before_normalization post_norm_without_warmup"
).split()

NO_BATCH_NORM = not_applicable("the model has no batch normalization")
GAP = {
    "evaluation_ratio": Limit(1.5, "times", "1400 digits, momentum 0.01, 75 steps: 5.7 times; momentum 0.1: none"),
    "evaluation_margin": Limit(0.1, "of chance", "heuristic: what counts as learning; a loss near zero doubles by accident"),
}


def batch_norms(m: Measurement) -> list[Norm]:
    return [n for n in m.norms if n.batch and n.raised is None]


def over_batches(m: Measurement) -> list[Norm]:
    """Those that take statistics of a batch while training; ends the rule where there are none."""
    return required([n for n in batch_norms(m) if n.of_batch] or None, NO_BATCH_NORM)


def evaluation_gap(m: Measurement, limits: Limits) -> bool:
    """Whether the trained copy is far worse with the running statistics than with those of each batch."""
    s = m.normalization
    scale = m.chance or (m.probe.losses[0] if m.probe.losses else 0.0)
    margin = limits["evaluation_margin"] * abs(scale)
    return s is not None and s.evaluated > limits["evaluation_ratio"] * s.batch and s.evaluated > s.batch + margin


def gap_in_words(m: Measurement) -> str:
    s = m.normalization
    return f"loss {number(s.evaluated)} in evaluation mode, {number(s.batch)} with the statistics of each batch" if s else ""


def main_site(norms: Sequence[Norm | Layer]) -> Location | None:
    """The place that most of them come from, the first of equals."""
    counts = Counter(n.site for n in norms if n.site is not None)
    return counts.most_common(1)[0][0] if counts else None


def norm_names(norms: Sequence[Norm]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.layer for n in norms))
