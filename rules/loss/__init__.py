"""Rules about the loss, and whether it falls.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "output_loss_mismatch loss_domain initial_loss softmax_dimension loss_not_falling unstable_loss adversary_saturated "
    "no_learning_signal inert_loss_term unbalanced_loss_terms"
).split()
