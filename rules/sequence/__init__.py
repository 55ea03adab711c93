"""Rules about what is predicted from what in a sequence.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

from collections.abc import Sequence

from gradcheck.types.rule import Limit
from gradcheck.types.sequence import TokenStream

RULES = ("future_leak", "labels_misaligned", "nothing_supervised", "padding_leak")

NEXT_TOKEN = Limit(
    0.99,
    "of the supervised places",
    "next-token targets agree by construction: 1.0 in all 26 models of the calibration; the rest is for tokens that a script replaces",
)
LEAK = Limit(
    1e-2,
    "of the effect on later places",
    "calibration: 25 causal models, trained for 60 steps, at most 1e-5 (rounding); 20 that leak, at least 0.15",
)


def _by_loss(streams: Sequence[TokenStream]) -> list[list[TokenStream]]:
    return [[s for s in streams if s.loss == loss] for loss in dict.fromkeys(s.loss for s in streams)]
