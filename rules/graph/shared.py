"""What several rules of this family share."""

from gradcheck.analysis.wording import quoted


def _place(layer: str) -> str:
    return f" in {quoted(layer)}" if layer else ""
