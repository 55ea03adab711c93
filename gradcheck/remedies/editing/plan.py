"""From fixes to edited files: each fix is written into the files as the fixes before it left them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.document import FileChange, SourceError, digest, refuse, write
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.types.fix import STAGES, Fix
from gradcheck.types.measurement import Measurement


@dataclass
class SourcePlan:
    """Edited files that are not written yet, and what could not be written into them."""

    drafts: tuple[Draft, ...]  # those that changed
    written: tuple[Fix, ...]
    unwritten: tuple[tuple[Fix, str], ...]  # with the reason
    done: list[FileChange] = field(default_factory=list)

    @property
    def diffs(self) -> dict[str, str]:
        """path -> unified diff to the file on disk."""
        return {d.path: d.origin.diff(d.text) for d in self.drafts}

    @property
    def diff(self) -> str:
        return "".join(self.diffs.values())

    @property
    def own_diff(self) -> str:
        """What these fixes change in the files as they were measured, where edits were measured already."""
        return "".join(d.document.diff(d.text) for d in self.drafts)

    @property
    def texts(self) -> dict[str, bytes]:
        """path -> the bytes of the edited file."""
        return {d.path: d.origin.encoded(d.text) for d in self.drafts}

    def write(self, allow_dirty: bool = False) -> list[str]:
        """Replaces the files, each whole or not at all, and gives their paths.

        Raises SourceError when a file is not the one that was read, cannot be written, or lies in a git tree with uncommitted changes.
        """
        changes = self._changes()
        write(changes, allow_dirty=allow_dirty)
        self.done = changes
        return [c.path for c in changes]

    def refuse(self, allow_dirty: bool = False) -> None:
        """Raises SourceError as `write` does, and writes nothing."""
        refuse(self._changes(), allow_dirty=allow_dirty)

    def _changes(self) -> list[FileChange]:
        return [FileChange(d.path, d.origin.data, d.origin.encoded(d.text)) for d in self.drafts]


def plan(
    fixes: Sequence[Fix], measurement: Measurement, files: Sequence[str], writers: Mapping[str, Writer], onto: Sequence[Draft] = ()
) -> SourcePlan:
    """Raises SourceError when a file is not the one that was measured."""
    context = Context(measurement, tuple(str(f) for f in files), {os.path.realpath(d.path): d for d in onto})
    unchanged_since(measurement, context)
    written: list[Fix] = []
    unwritten: list[tuple[Fix, str]] = []
    for fix in sorted(fixes, key=lambda p: STAGES.index(p.stage)):
        writer = writers.get(fix.treatment)
        why = "there is no edit of the source for it" if writer is None else attempt(writer, fix, context)
        if why:
            unwritten.append((fix, why))
        else:
            written.append(fix)
    return SourcePlan(tuple(d for d in context.drafts.values() if d.changed), tuple(written), tuple(unwritten))


def attempt(writer: Writer, fix: Fix, context: Context) -> str:
    """Writes one fix, or leaves every file as it was and says why."""
    before = {path: draft.snapshot() for path, draft in context.drafts.items()}
    inserted = dict(context.inserted)
    try:
        writer(fix, context)
        if any(draft.snapshot() != before.get(path, (draft.document.text, 0)) for path, draft in context.drafts.items()):
            for draft in context.drafts.values():
                draft.document.encoded(draft.text)
            return ""
        why = "the source has it already"
    except (Unwritable, SourceError) as error:
        why = str(error)
    context.inserted = inserted
    for path, draft in context.drafts.items():
        draft.rewind(before.get(path, (draft.document.text, 0)))
    return why


def unchanged_since(measurement: Measurement, context: Context) -> None:
    """Raises SourceError when a line that was seen during the scan has changed since."""
    allowed = {os.path.realpath(f) for f in context.files}
    for path, lines in measurement.snippets.items():
        if os.path.realpath(path) not in allowed:
            continue
        try:
            now = context.draft(path).document.lines
        except Unwritable as error:
            raise SourceError(str(error), hint="scan again") from error
        for line, text in lines.items():
            if not 0 < line <= len(now) or now[line - 1].rstrip() != text.rstrip():
                raise SourceError(f"{path}:{line} changed since it was scanned", hint="scan again")


__all__ = ["SourcePlan", "digest", "plan"]
