"""Rules about numbers that leave the range or the resolution of their format.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = "non_finite singular_derivative half_overflow half_underflow lost_updates precision_forecast".split()
