"""Rules about finished runs of which a log is left.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

import re

from gradcheck.types.finding import Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import not_applicable, required
from gradcheck.types.training import LogFacts

RULES = (
    "log_loss_not_finite log_loss_diverged log_loss_spikes log_loss_flat log_rate_jumps log_evaluation_departs log_gradient_norms"
).split()

PREFERENCES = {"rewards/chosen", "rewards/margins", "rewards/accuracies", "accuracy", "margin"}
EARNED = ("reward", "rewards", "rew", "return", "returns")  # words in the names of columns
REWARDS = "rewards led the run, and its loss need not fall"
NO_LOG = not_applicable("no log of a finished run was read")
NO_LOSS = not_applicable("the log has no loss of training")
WATCH = "gradcheck watch -- python train.py"


def recorded(m: Measurement) -> LogFacts:
    """The log of a finished run, or what one would hold of a run that is watched."""
    return required(m.log if m.log is not None else m.course, NO_LOG)


def finished(m: Measurement) -> LogFacts:
    return required(m.log, NO_LOG)


def led_by_rewards(log: LogFacts) -> bool:
    """Whether rewards led the training, whose loss says little then. Models of rewards, and preferences, have a loss like any other."""
    names = {name.lower().removeprefix("train/") for name in log.others}
    words = {word for name in names for word in re.split("[^a-z]+", name)}
    return not words.isdisjoint(EARNED) and not names & PREFERENCES


def look(m: Measurement, at: str) -> Remedy:
    """What a log cannot show, and what does: every finding ends with it."""
    if m.log is None:
        return Remedy("scan-script", f"{at}: `gradcheck scan train.py` tries other rates and looks at single layers")
    return Remedy("watch-run", f"{at}: the log does not show why; `gradcheck scan train.py`, or `{WATCH}`, does")


def at_step(step: float) -> str:
    return f"step {step:g}"
