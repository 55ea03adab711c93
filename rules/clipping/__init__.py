"""Rules about clipping of gradients.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = ("clipping_needed", "clipping_too_tight", "clipping_by_value")
