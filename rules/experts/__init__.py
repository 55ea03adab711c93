"""Rules about routed experts.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = ("router_collapse",)
