"""A bisection as text, as JSON, and as a page: one file without scripts, nothing from the network."""

import json
from collections.abc import Sequence

from markupsafe import Markup

from gradcheck.report.diff import document, value_of
from gradcheck.report.formatting import clean
from gradcheck.report.html.markup import table, tag
from gradcheck.report.table import aligned
from gradcheck.saved_run import as_plain
from gradcheck.types.bisection import Bisection, Parting, StepDistances

SIGNS = {"equal": "=", "within-noise": "≈", "parted": "≠", "not-comparable": "?"}
COLUMNS = ("step", "activations", "gradients", "updates", "A again")
SHOWN_STEPS = 10


def text(found: Bisection) -> str:
    """The headline, what explains it, the first partings, and the distances step by step."""
    lines = [f"A: {found.a}", f"B: {found.b}", "", f"{SIGNS[found.verdict]} {found.headline}", *(f"  {c}" for c in found.causes)]
    lines += ["", f"{found.noise}. {found.parted} of {found.compared} events differ by more."]
    if found.partings:
        rows = [("step", "what", "layer or tensor", "distance", "limit"), *(row(p) for p in found.partings)]
        lines += ["", *aligned(rows, left=len(rows[0]))]
        more = found.parted - len(found.partings)
        lines += [f"and {more} more"] if more > 0 else []
    if found.verdict != "equal" and found.steps:
        lines += ["", "Largest relative distance:", *aligned([COLUMNS, *(step_row(s) for s in shown_steps(found))], left=len(COLUMNS))]
    lines += ["", *(f"note: {n}" for n in found.notes)] if found.notes else []
    return "\n".join(clean(line) for line in lines) + "\n"


def as_json(found: Bisection) -> str:
    return json.dumps({"schema_version": 1, **as_plain(found)}, indent=2) + "\n"


def row(parting: Parting) -> tuple[str, ...]:
    name = parting.a if parting.a in (parting.b, "") or parting.b in ("", "-") else f"{parting.a} = {parting.b}"
    name = parting.b if parting.a == "-" else name
    name = f"{name or '(model)'}{f' #{parting.call + 1}' if parting.call else ''}"
    return str(parting.step), parting.kind, name, value_of(parting.distance), value_of(parting.limit)


def step_row(step: StepDistances) -> tuple[str, ...]:
    return str(step.step), *(value_of(v) for v in (step.activations, step.gradients, step.updates, step.noise))


def shown_steps(found: Bisection) -> list[StepDistances]:
    """The steps around the one at which they part, and the last."""
    first = found.partings[0].step if found.partings else 0
    kept = [s for s in found.steps if first - 1 <= s.step < first - 1 + SHOWN_STEPS]
    return kept if found.steps[-1] in kept else [*kept[:-1], found.steps[-1]]


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
        words = any(p.distance is None for p in found.partings)  # the columns say it otherwise
        rows = [row(p) + ((p.what if p.distance is None else "",) if words else ()) for p in found.partings]
        columns = ("step", "what", "layer or tensor", "distance", "limit", *(("in words",) if words else ()))
        parts.append(tag("section", table(columns, rows, "Where they part first")))
    if found.steps:
        parts.append(tag("section", table(COLUMNS, map(step_row, found.steps), "Largest relative distance in each step")))
    if found.notes:
        parts.append(tag("section", tag("h2", "Not compared"), _list(found.notes)))
    return document("gradcheck bisect: A against B", f"gradcheck bisect: {found.a}, {found.b}", parts)


def _list(lines: Sequence[str]) -> Markup | None:
    return tag("ul", [tag("li", line) for line in lines]) if lines else None
