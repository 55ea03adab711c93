"""What several rules of this family share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


FLOATING = ("float", "bfloat", "half", "double")
