"""Source files for tests of edits: where an expression stands in them, and measurements whose sites point there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gradcheck.remedies.editing.document import line_starts
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.remedies.writers import plan_edits
from gradcheck.types.fix import Fix, Setting, Stage
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from tests import literals

HEAD = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n\n\n"


def place(path: str, text: str, wanted: str, occurrence: int = 0) -> Location:
    """Where the given text stands, as a measurement says it: lines and columns from 1, columns in characters."""
    start = -1
    for _ in range(occurrence + 1):
        start = text.index(wanted, start + 1)
    end = start + len(wanted)
    lines = line_starts(text)
    first = max(i for i, offset in enumerate(lines[:-1]) if offset <= start)
    last = max(i for i, offset in enumerate(lines[:-1]) if offset < end)
    return Location(path, first + 1, start - lines[first] + 1, last + 1, end - lines[last] + 1)


class Sheet:
    """A file in the working directory. `layers`: name -> (expression, type, kind, overrides)."""

    def __init__(self, text: str, *, path: str = "model.py", data: bytes | None = None) -> None:
        self.path, self.text = path, text
        Path(path).write_bytes(text.encode() if data is None else data)
        self._layers: list[Any] = []
        self._overrides: dict[str, Any] = {}

    def at(self, wanted: str, occurrence: int = 0) -> Location:
        return place(self.path, self.text, wanted, occurrence)

    def layer(self, name: str, wanted: str, occurrence: int = 0, kind: str = "linear", **overrides: Any) -> Sheet:
        site = self.at(wanted, occurrence) if wanted else None
        self._layers.append(literals.layer(name, kind, site=site, **overrides))
        return self

    def root(self, wanted: str, type: str = "Net") -> Sheet:
        return self.layer("", wanted, kind="container", type=type, parameters=())

    def optimizer(self, wanted: str, name: str = "Adam", **overrides: Any) -> Sheet:
        self._overrides["optimizer"] = literals.optimizer(name, site=self.at(wanted), **overrides)
        return self

    def having(self, **overrides: Any) -> Sheet:
        self._overrides |= overrides
        return self

    @property
    def measurement(self) -> Measurement:
        m = literals.measurement(layers=tuple(self._layers), **self._overrides)
        if "optimizer" not in self._overrides:
            m = replace(m, optimizer=replace(m.optimizer, site=None))
        return m

    def plan(self, *fixes: Fix) -> SourcePlan:
        return plan_edits(fixes, self.measurement, [self.path])

    def edited(self, *fixes: Fix) -> str:
        """The text of the file with these fixes in it; raises AssertionError with the reason when one was not written."""
        plan = self.plan(*fixes)
        assert not plan.unwritten, plan.unwritten[0][1]
        return plan.texts[self.path].decode()

    def refused(self, fix: Fix) -> str:
        """Why a fix is not written. The file stays as it is."""
        plan = self.plan(fix)
        assert not plan.drafts, plan.diff
        return plan.unwritten[0][1]


def fix(treatment: str, *layers: str, stage: Stage = "architecture", location: Location | None = None, **settings: Setting) -> Fix:
    return Fix(treatment, f"{treatment} as a sentence", stage, "unsafe", settings, layers, ("TEST001",), location)
