"""Remedies as edits of the user's source: exact spans, re-parsed, shown as a diff, written atomically.

document   a file's bytes, encoding and newlines
draft      a file under edit: places are followed through the edits, each one is checked
nodes, statements, imports   edits of calls, of statements, of imports
context    what a writer works with
writers    one writer for each treatment
plan       several prescriptions into the same files
write      replacing the files
"""

from __future__ import annotations

from collections.abc import Sequence

from gradcheck.remedies.editing.document import SourceError
from gradcheck.remedies.editing.draft import Draft
from gradcheck.remedies.editing.plan import SourcePlan, plan
from gradcheck.remedies.writers import WRITERS
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement

__all__ = ["WRITERS", "SourceError", "SourcePlan", "plan_edits"]


def plan_edits(
    prescriptions: Sequence[Fix], measurement: Measurement, files: Sequence[str], onto: Sequence[Draft] = ()
) -> SourcePlan:
    """Writes prescriptions into copies of the user's files, in the order of their stages. `files`: those that may be changed.

    `onto`: files under edit that the measurement saw as they are, or that were edited since for the same measurement; they go on.
    Nothing on disk changes before `SourcePlan.write`. Raises SourceError when a file is not the one that was measured.
    """
    return plan(prescriptions, measurement, files, WRITERS, onto)
