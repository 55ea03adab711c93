"""Rules about normalization layers.

`RULES`: the files, each with the rule of its name, in the order of their codes.
"""

RULES = (
    "missing_normalization deep_batchnorm_without_skips batchnorm_small_batch dropout_before_batchnorm batchnorm_in_eval "
    "batchnorm_momentum bias_before_normalization post_norm_without_warmup"
).split()
