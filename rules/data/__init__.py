"""Rules about inputs and targets.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

RULES = ("unscaled_input non_finite_input unscaled_target degenerate_labels uninformative_features validation_leak labels_shuffled").split()

FLOATING = ("float", "bfloat", "half", "double")
