"""Rules about what is predicted from what in a sequence.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = ("future_leak", "labels_misaligned", "nothing_supervised", "padding_leak")
