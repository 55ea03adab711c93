"""A part of a page, for a notebook: the same sections, with styles that touch nothing around them, light or dark as the notebook is.

Every rule of the style sheet is nested in the class of the fragment. Parts that need the script of the page are left out.
"""

import functools
import secrets
from collections.abc import Sequence

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.report.html.axes import linear_axis, path
from gradcheck.report.html.curves import BOTTOM, HUES, LEFT, RIGHT, TOP
from gradcheck.report.html.markup import Child, coordinate, inline, name, tag
from gradcheck.report.html.page import article, asset
from gradcheck.report.html.theme import DARK, LIGHT, rule, sign
from gradcheck.report.html.trial import trial
from gradcheck.types.gauges import Frame
from gradcheck.types.report import Report
from gradcheck.types.trial import TrialResult

CLASS = "gradcheck-view"
# How notebooks mark themselves as dark or light, whatever the system is: JupyterLab, Visual Studio Code, Colab.
DARK_PLACES = ("[data-jp-theme-light=false]", ".vscode-dark", "html[theme=dark]")
LIGHT_PLACES = ("[data-jp-theme-light=true]", ".vscode-light", "html[theme=light]")
EXTRA = """\
&{padding:4px 2px 12px;max-width:1080px}
.top{padding-top:8px}
section{margin-top:28px}
.scripted{display:none}
table{color:inherit}
use{fill:var(--soft);font:11px var(--mono)}
"""


def of_reports(reports: Sequence[Report]) -> str:
    """The sections of reports."""
    start = secrets.randbelow(1 << 40)  # ids must be unique among all outputs of a notebook
    return _view([article(report, f"g{start + i}-", start + i, len(reports)) for i, report in enumerate(reports)])


def of_trial(result: TrialResult) -> str:
    """The verdict of a trial, its table and its curves."""
    return _view(
        [
            tag(
                "article",
                tag("h2", f"Trial of {result.target}"),
                tag("p", inline(result.verdict), class_="message"),
                trial(result),
                class_="report",
            )
        ]
    )


def of_frame(frame: Frame | None, title: str) -> str:
    """A watched run while it goes on."""
    if frame is None:
        return _view([tag("p", f"{title}: waiting for the first steps", class_="soft")])
    head = tag("p", tag("b", f"{title}, step {frame.step}"), tag("span", f"  {number(frame.speed)} steps/s", class_="soft"))
    found = [tag("li", sign(f.severity), tag("span", tag("b", f.name), f" {f.message} ", tag("code", f.place))) for f in frame.findings]
    rows = [("loss", frame.loss), ("gradient", frame.norm), ("update", frame.update), ("rate", frame.rate)]
    cells = [tag("tr", tag("th", label, scope="row"), tag("td", number(value), class_="n")) for label, value in rows if value is not None]
    layers = [tag("tr", tag("td", name(x.name)), tag("td", "" if x.gradient is None else number(x.gradient))) for x in frame.layers]
    heads = tag("tr", tag("th", "layers that stand out", scope="col"), tag("th", "gradient", scope="col"))
    tables = tag("div", tag("table", tag("tbody", cells)), tag("table", tag("thead", heads), tag("tbody", layers)) if layers else None)
    parts = (head, tag("div", _curve(frame), tables, class_="figures"), tag("ul", found, class_="headlines") if found else None)
    return _view(parts)


def _curve(frame: Frame) -> Markup | None:
    """The losses of the run so far."""
    if len(frame.losses) < 2:
        return None
    axis = linear_axis(list(frame.losses), BOTTOM, TOP)
    width = (RIGHT - LEFT) / (len(frame.losses) - 1)
    line = path([(LEFT + i * width, axis(value)) if value == value else None for i, value in enumerate(frame.losses)])
    drawn = tag("path", class_=f"curve {HUES[0]}", d=line)
    low, high = min(frame.losses), max(frame.losses)
    words = f"Loss from {number(frame.losses[0])} to {number(frame.losses[-1])}, between {number(low)} and {number(high)}"
    size = f"0 0 {coordinate(RIGHT)} {coordinate(BOTTOM + TOP)}"
    picture = tag("svg", tag("title", words), drawn, viewBox=size, role="img", class_="curves")
    return tag("figure", picture, tag("figcaption", words, class_="soft"))


def _view(parts: Child) -> str:
    return tag("div", tag("style", style()), tag("div", parts, class_=CLASS))


@functools.cache
def style() -> Markup:
    """The style sheet of the page, nested in the class of the fragment, and the colours of the place where it is shown."""
    view = f".{CLASS}"
    light, dark = rule(LIGHT, "light"), rule(DARK, "dark")
    colours = f"{view}{{{light}}}@media (prefers-color-scheme:dark){{{view}{{{dark}}}}}"
    colours += f"{_inside(LIGHT_PLACES)}{{{light}}}{_inside(DARK_PLACES)}{{{dark}}}"
    own = f"\n{asset('style.css')}".replace("\nhtml{", "\n&{").replace("\nbody{", "\n&{")
    return Markup(f"{colours}{view}{{{own}\n{EXTRA}}}")


def _inside(places: Sequence[str]) -> str:
    return ",".join(f"{place} .{CLASS}" for place in places)
