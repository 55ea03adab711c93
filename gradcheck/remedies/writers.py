"""One writer for each remedy, under its name; and fixes written into the source with them."""

from collections.abc import Sequence

from gradcheck.remedies import activation, clipping, precision, recurrence, transformer
from gradcheck.remedies.data import write_batches
from gradcheck.remedies.editing.context import Writer
from gradcheck.remedies.editing.draft import Draft
from gradcheck.remedies.editing.plan import SourcePlan, plan
from gradcheck.remedies.initialization import lsuv, write_values, write_weights
from gradcheck.remedies.loop import write_clipping, write_epochs, write_once, write_steps, write_targets
from gradcheck.remedies.loss import stability, write_loss
from gradcheck.remedies.normalization import layers
from gradcheck.remedies.optimizer import schedule, write_settings
from gradcheck.remedies.regularization import augmentation, dropout, penalties
from gradcheck.remedies.residual import write_branches
from gradcheck.remedies.wiring import write_parameters, zero_derivatives
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement

MODULES = (
    write_steps,
    write_clipping,
    write_epochs,
    write_once,
    write_targets,
    write_parameters,
    zero_derivatives,
    precision,
    write_loss,
    stability,
    write_batches,
    write_weights,
    write_values,
    lsuv,
    activation,
    layers,
    transformer,
    write_branches,
    recurrence,
    write_settings,
    schedule,
    clipping,
    penalties,
    dropout,
    augmentation,
)
WRITERS: dict[str, Writer] = {name: writer for module in MODULES for name, writer in module.WRITERS.items()}


def plan_edits(fixes: Sequence[Fix], measurement: Measurement, files: Sequence[str], onto: Sequence[Draft] = ()) -> SourcePlan:
    """Writes fixes into copies of the user's files, in the order of their stages. `files`: those that may be changed.

    `onto`: files under edit that the measurement saw as they are, or that were edited since for the same measurement; they go on.
    Nothing on disk changes before `SourcePlan.write`. Raises SourceError when a file is not the one that was measured.
    """
    return plan(fixes, measurement, files, WRITERS, onto)
