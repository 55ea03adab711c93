"""A bisection as a page: one file without scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from gradcheck.report.bisection import COLUMNS, SIGNS, row, step_row
from gradcheck.report.diff_html import document
from gradcheck.report.html.markup import tag
from gradcheck.types.bisection import Bisection

COLORS = {"equal": "good", "within-noise": "good", "parted": "error", "not-comparable": "soft"}


def page(found: Bisection) -> str:
    """The document."""
    sides = tag("p", "A ", tag("code", found.a), tag("br"), "B ", tag("code", found.b))
    said = tag("h2", tag("span", f"{SIGNS[found.verdict]} ", aria_hidden="true"), found.headline, class_=COLORS[found.verdict])
    parts = [
        sides,
        tag("section", said, _list(found.causes), tag("p", f"{found.noise}. {found.parted} of {found.compared} events differ by more.")),
    ]
    if found.partings:
        rows = [(*row(p), p.what) for p in found.partings]
        parts.append(_table("Where they part first", ("step", "what", "layer or tensor", "distance", "limit", ""), rows))
    if found.steps:
        parts.append(_table("Largest relative distance in each step", COLUMNS, [step_row(s) for s in found.steps]))
    if found.notes:
        parts.append(tag("section", tag("h2", "Not compared"), _list(found.notes)))
    return document("gradcheck bisect: A against B", f"gradcheck bisect: {found.a}, {found.b}", parts)


def _list(lines: Sequence[str]) -> Markup | None:
    return tag("ul", [tag("li", line) for line in lines]) if lines else None


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Markup:
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in columns]))
    body = tag("tbody", [tag("tr", [tag("td", cell) for cell in cells]) for cells in rows])
    return tag("section", tag("div", tag("table", tag("caption", title), head, body), class_="wide"))
