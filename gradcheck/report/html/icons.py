"""Signs for severities and statuses, wherever a colour shows them: colour is never the only sign."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from gradcheck.report.html.markup import tag
from gradcheck.types.finding import Severity

SIGNS: Mapping[str, str] = {"error": "▲", "warning": "■", "info": "◆", "good": "●", "none": "–"}


def sign(level: Severity | str) -> Markup:
    """▲ error, ■ warning, ◆ info, ● good; the word beside it says the same to screen readers."""
    return tag("span", SIGNS[level], class_=f"sign {level}", aria_hidden="true")
