"""Rules about what the training loop does.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "optimizer_never_steps clipping_misplaced evaluation_mode_in_training schedule_kills_rate same_batch_every_step "
    "accumulation_unscaled scaler_misused ranks_disagree optimizer_recreated graph_retained accumulation_unweighted "
    "average_incomplete schedule_misplaced state_not_loaded"
).split()
