"""What several rules of this family share."""

from __future__ import annotations

FLOATING = ("float", "bfloat", "half", "double")
