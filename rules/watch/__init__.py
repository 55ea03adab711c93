"""Rules about mechanisms that show before the loss goes, in runs that are watched.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "second_moment_lags gradient_out_of_line attention_logits_grow output_logits_drift expert_dies weights_run_away "
    "signal_runs_away loss_scale_falls gradients_leave_format"
).split()
