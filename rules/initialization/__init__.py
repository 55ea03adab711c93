"""Rules about where weights start.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "signal_gain weight_scale residual_growth recurrent_initialization degenerate_initialization symmetric_units "
    "default_initialization output_bias_off_prior"
).split()
