"""The rules of gradcheck, a module per family: each lists its rules in `RULES`, in order of their codes.

To add a family, add its module and its name here. `gradcheck.judge.registry` loads them; nothing else imports them.
"""

from __future__ import annotations

FAMILIES = (
    "graph",
    "graph_loop",
    "graph_function",
    "gradient",
    "gradient_zero",
    "gradient_time",
    "gradient_samples",
    "activation",
    "activation_missing",
    "attention",
    "initialization",
    "initialization_recurrent",
    "initialization_residual",
    "initialization_prior",
    "normalization",
    "normalization_depth",
    "loss",
    "loss_not_falling",
    "loss_stability",
    "half_precision",
    "numerics",
    "optimization",
    "batch_size",
    "optimizer_settings",
    "clipping",
    "regularization",
    "data",
    "data_targets",
    "loop",
    "loop_batches",
    "loop_ranks",
)
