"""Rules about adapters of frozen weights.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = ("adapter_coverage", "adapter_scale")
