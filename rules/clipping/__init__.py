"""Rules about clipping of gradients.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

RULES = ("clipping_needed", "clipping_too_tight", "clipping_by_value")

SETTLED = 20  # steps before which norms are not judged
