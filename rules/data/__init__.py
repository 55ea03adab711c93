"""Rules about inputs and targets.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = ("unscaled_input non_finite_input unscaled_target degenerate_labels uninformative_features validation_leak labels_shuffled").split()
