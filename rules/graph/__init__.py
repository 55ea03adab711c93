"""Rules about what the loss reaches, and what reaches the loss.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

from gradcheck.analysis.wording import quoted

RULES = (
    "disconnected_parameters unregistered_modules parameters_not_in_optimizer gradient_ascent wrong_gradient "
    "gradients_not_cleared samples_mixed input_ignored"
).split()


def _place(layer: str) -> str:
    return f" in {quoted(layer)}" if layer else ""
