"""Rules about decay, dropout, and what they cost.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = "decay_too_strong decay_on_norm_and_bias dropout_too_strong overfitting over_regularized".split()
