"""Rules about finished runs of which a log is left.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "log_loss_not_finite log_loss_diverged log_loss_spikes log_loss_flat log_rate_jumps log_evaluation_departs log_gradient_norms"
).split()
