"""One writer for each remedy, under its name; and fixes written into the source with them."""

from collections.abc import Sequence

from gradcheck.remedies.activation import write_activation
from gradcheck.remedies.clipping import write_gradients
from gradcheck.remedies.data import write_batches
from gradcheck.remedies.editing.context import Writer
from gradcheck.remedies.editing.draft import Draft
from gradcheck.remedies.editing.plan import SourcePlan, plan
from gradcheck.remedies.initialization import write_lsuv, write_values, write_weights
from gradcheck.remedies.loop import (
    write_clipping,
    write_epochs,
    write_graph,
    write_once,
    write_steps,
    write_targets,
    write_weighting,
)
from gradcheck.remedies.loss import write_loss, write_stability
from gradcheck.remedies.normalization import write_normalization
from gradcheck.remedies.optimizer import write_schedule, write_settings
from gradcheck.remedies.precision import write_regions
from gradcheck.remedies.recurrence import write_gates
from gradcheck.remedies.regularization import write_augmentation, write_dropout, write_step_hooks
from gradcheck.remedies.residual import write_branches
from gradcheck.remedies.transformer import write_pre_norm
from gradcheck.remedies.wiring import write_parameters, write_zero_derivatives
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement

MODULES = (
    write_steps,
    write_clipping,
    write_epochs,
    write_graph,
    write_once,
    write_weighting,
    write_targets,
    write_parameters,
    write_zero_derivatives,
    write_regions,
    write_loss,
    write_stability,
    write_batches,
    write_weights,
    write_values,
    write_lsuv,
    write_activation,
    write_normalization,
    write_pre_norm,
    write_branches,
    write_gates,
    write_settings,
    write_schedule,
    write_gradients,
    write_step_hooks,
    write_dropout,
    write_augmentation,
)
WRITERS: dict[str, Writer] = {name: writer for module in MODULES for name, writer in module.WRITERS.items()}


def plan_edits(fixes: Sequence[Fix], measurement: Measurement, files: Sequence[str], onto: Sequence[Draft] = ()) -> SourcePlan:
    """Writes fixes into copies of the user's files, in the order of their stages. `files`: those that may be changed.

    `onto`: files under edit that the measurement saw as they are, or that were edited since for the same measurement; they go on.
    Nothing on disk changes before `SourcePlan.write`. Raises SourceError when a file is not the one that was measured.
    """
    return plan(fixes, measurement, files, WRITERS, onto)
