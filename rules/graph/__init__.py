"""Rules about what the loss reaches, and what reaches the loss.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "disconnected_parameters unregistered_modules parameters_not_in_optimizer gradient_ascent wrong_gradient "
    "gradients_not_cleared samples_mixed input_ignored"
).split()
