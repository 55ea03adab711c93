"""Rules about decay, dropout, and what they cost.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

from gradcheck.analysis.convergence import CLEAR_FALL, data_fall, outcome, relative_decrease, training_outcome
from gradcheck.analysis.wording import optimizer_in_words, run_in_words
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import Regularization, Run

RULES = "decay_too_strong decay_on_norm_and_bias dropout_too_strong overfitting over_regularized".split()

DROPOUT, DECAY, PENALTY = "dropout", "weight decay", "penalty"


def failed(m: Measurement, r: Regularization) -> bool:
    """Whether the probe learned nothing about the data. Where a penalty makes up the loss, its fall says nothing."""
    return data_fall(r) < CLEAR_FALL and (PENALTY in r.kinds or training_outcome(m) in ("stalls", "diverges"))


def recovered(r: Regularization, *kinds: str) -> Run | None:
    """The training without exactly these kinds, if it learned clearly, and clearly more than the one with them."""
    for run in r.runs:
        fell = relative_decrease(run, r.chance)
        if set(run.lifted) == set(kinds) and outcome(run, r.chance) == "learns" and fell >= max(0.0, data_fall(r)) + CLEAR_FALL:
            return run
    return None


def confirmation(m: Measurement, run: Run) -> str:
    return f"by the probe: {optimizer_in_words(m)}: {run_in_words(m.probe)}; {run.name}, {run_in_words(run)}"
