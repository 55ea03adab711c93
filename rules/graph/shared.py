"""What several rules of this family share."""

from __future__ import annotations

from gradcheck.analysis.wording import quoted


def _place(layer: str) -> str:
    return f" in {quoted(layer)}" if layer else ""
