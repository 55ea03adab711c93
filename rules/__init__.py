"""The rules of gradcheck: a folder for each family, a file for each rule, named as the rule.

To add a rule, add its file, and its name in the `RULES` of the family's folder. `gradcheck.judge.registry` loads them.
"""

FAMILIES = (
    "graph gradient activation initialization normalization loss numerics optimization clipping regularization data loop log "
    "watch sequence experts adapters"
).split()
