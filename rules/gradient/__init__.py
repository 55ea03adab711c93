"""Rules about how gradients travel.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = "vanishing_gradient exploding_gradient gradient_through_time zero_gradient gradient_outliers".split()
