"""Rules about what activations do with the signal.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "saturated_activation dead_units deep_sigmoid collapsed_representation attention_collapse missing_nonlinearity dormant_units"
).split()
