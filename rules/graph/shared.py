"""What several rules of this family share."""

from __future__ import annotations


def _place(layer: str) -> str:
    return f" in {layer}" if layer else ""
