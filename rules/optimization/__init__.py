"""Rules about the optimizer's settings and its rate.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "learning_rate_too_high learning_rate_too_low adam_epsilon coupled_weight_decay warmup_missing batch_size "
    "past_critical_rate momentum_too_long"
).split()
