"""What several rules of this family share."""

FLOATING = ("float", "bfloat", "half", "double")
