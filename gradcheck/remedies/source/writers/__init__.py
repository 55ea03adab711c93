"""One writer for each treatment, under its name."""

from __future__ import annotations

from gradcheck.remedies.source.context import Writer
from gradcheck.remedies.source.writers import (
    activation,
    clipping,
    data,
    initial_values,
    initialization,
    loss,
    lsuv,
    normalization,
    optimizer,
    regularization,
    residual,
    stability,
    wiring,
)

MODULES = (
    wiring,
    loss,
    stability,
    data,
    initialization,
    initial_values,
    lsuv,
    activation,
    normalization,
    residual,
    optimizer,
    clipping,
    regularization,
)
WRITERS: dict[str, Writer] = {name: writer for module in MODULES for name, writer in module.WRITERS.items()}
