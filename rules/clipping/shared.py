"""What several rules of this family share."""

SETTLED = 20  # steps before which norms are not judged
