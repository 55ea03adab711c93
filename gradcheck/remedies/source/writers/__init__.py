"""One writer for each treatment, under its name."""

from __future__ import annotations

from gradcheck.remedies.source.context import Writer
from gradcheck.remedies.source.writers import (
    activation,
    augmentation,
    clipping,
    data,
    initial_values,
    initialization,
    loop_clipping,
    loop_epochs,
    loop_graph,
    loop_steps,
    loss,
    lsuv,
    normalization,
    optimizer,
    placeholder,
    precision,
    recurrence,
    regularization,
    residual,
    schedule,
    stability,
    step_hooks,
    wiring,
    zero_derivatives,
)

MODULES = (
    loop_steps,
    loop_clipping,
    loop_epochs,
    loop_graph,
    wiring,
    zero_derivatives,
    placeholder,
    precision,
    loss,
    stability,
    data,
    initialization,
    initial_values,
    lsuv,
    activation,
    normalization,
    residual,
    recurrence,
    optimizer,
    schedule,
    clipping,
    step_hooks,
    regularization,
    augmentation,
)
WRITERS: dict[str, Writer] = {name: writer for module in MODULES for name, writer in module.WRITERS.items()}
