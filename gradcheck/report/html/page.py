"""The document: one file, nothing from the network, complete without scripts.

And a part of it for a notebook: the same sections, with styles that touch nothing around them, light or dark as the notebook is. Every rule
of the style sheet is nested in the class of the fragment. Parts that need the script of the page are left out.
"""

import functools
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from gradcheck.analysis.wording import counted, number
from gradcheck.report.html.axes import linear_axis, path
from gradcheck.report.html.curves import BOTTOM, HUES, LEFT, RIGHT, TOP, course, curve_chart, groups
from gradcheck.report.html.depth import columns, depth_chart, shown_layers
from gradcheck.report.html.findings import findings, proof
from gradcheck.report.html.heatmap import chooser, encoded, heatmap, statistics
from gradcheck.report.html.layers import chosen_layers, distribution, layer_table
from gradcheck.report.html.markup import DARK, LIGHT, Child, coordinate, html_page, inline, join, name, rule, sign, tag, variables
from gradcheck.report.html.method import method, states
from gradcheck.report.html.trial import trial
from gradcheck.report.html.verdict import cure, gauges, level, plain_sign, sentence, verdict
from gradcheck.report.outcomes import tail
from gradcheck.types.gauges import Frame
from gradcheck.types.layers import Layer
from gradcheck.types.report import Report
from gradcheck.types.trial import TrialResult


@dataclass(frozen=True)
class Lead:
    """The heading of a page (None: that of the scan), what stands under it, and its section."""

    heading: Child | None
    under: Child
    title: str
    content: Child


def lead(report: Report, written: bool = False) -> Lead | None:
    """Of a trial, a fix or a watched run; None for a scan."""
    if report.trial is not None:
        heading = join(sign("good" if report.trial.recommended else "none"), tag("span", headline(report.trial)))
        said = tag("p", inline(report.trial.verdict), class_="message")
        return Lead(heading, said, "Trial", trial(report.trial))
    if report.outcomes:
        heading = join(sign("none" if report.proof is None else "good"), tag("span", inline(tail(report, written=written))))
        return Lead(heading, cure(report) if report.proof else None, "Treatment", treatment(report))
    run = course(report)
    return None if run is None else Lead(None, None, "The run", run)


def headline(result: TrialResult) -> str:
    """A trial in a few words."""
    chosen = result.entry(result.recommended) if result.recommended else None
    if chosen is not None:
        return f"{chosen.title[:1].upper()}{chosen.title[1:]} is recommended"
    return f"After {counted(result.steps, 'step')}: too short to recommend anything" if result.falling else "No remedy is recommended"


def treatment(report: Report) -> Child:
    """What was kept of what was tried."""
    return proof(report) or tag("p", "Nothing that was tried is kept. Each finding lists what was tried for it.")


def document(reports: Sequence[Report], *, written: bool = False) -> str:
    """The whole page of one or several reports. `written`: the edits of a fix are in the source."""
    style, script = Markup(variables() + asset("style.css")), Markup(asset("script.js"))
    title = f"{' '.join(plain_sign(r) for r in reports)} gradcheck: {', '.join(r.target for r in reports)}"
    articles = [article(report, f"r{i}-", i, len(reports), written) for i, report in enumerate(reports)]
    main = tag("main", _contents(reports) if len(reports) > 1 else None, articles, id="main")
    skip = tag("a", "skip to the report", href="#main", class_="skip")
    body = (skip, _bar(reports), main, tag("div", id="tip", aria_hidden="true", hidden=True), tag("script", script))
    return html_page(title, style, body, script, " img-src data:;", tag("meta", name="referrer", content="no-referrer"))


def article(report: Report, prefix: str, index: int, count: int, written: bool = False) -> Markup:
    """One report: its sections, those without content left out."""
    layers = shown_layers(report.measurement)
    rows = columns(layers)
    parts, first = _Sections(prefix, alone=count == 1), lead(report, written)
    led = first is not None and first.heading is not None
    if first is not None:
        parts.add(first.title, first.content if led else join(first.content, gauges(report)))
    scan = (verdict(report, prefix, leads=not led), None if led and report.proof else cure(report))
    if led:
        parts.add("Scan", join(*scan, gauges(report)))
    if report.findings:
        parts.add("Findings", findings(report, prefix))
    if rows:
        parts.add("Over depth", _depth(report, layers, rows, prefix))
    if report.trial and report.outcomes:
        parts.add("Treatment", join(cure(report), treatment(report)))
    charts = [curve_chart(g) for g in groups(report)]
    if charts:
        parts.add("Losses", tag("div", charts, class_="figures"))
    if layers:
        parts.add(f"Layers ({len(layers)})", layer_table(report, layers, prefix), folded=True)
    shown = [distribution(x) for x in chosen_layers(report, layers)]
    if shown:
        said = tag(
            "p",
            "Sizes of the entries of layers with findings: ",
            _key("output"),
            "outputs, ",
            _key("gradient"),
            "gradients. Filled: at the first measured step, line: at the last.",
        )
        parts.add("Distributions", join(said, tag("div", shown, class_="figures small")), folded=True)
    parts.add("Rules without a finding", states(report), folded=True)
    parts.add("Method and settings", method(report), folded=True)
    heading = tag("h2", first.heading, id=f"{prefix}verdict") if first is not None and led else None
    verdict_of = (heading, first.under) if first is not None and led else scan
    title = tag("p", tag("code", report.target), class_="target") if count > 1 else None
    top = tag("header", title, verdict_of, parts.contents(report.target), class_="top")
    dials = None if first is not None else gauges(report)
    return tag("article", top, dials, parts.every, id=f"r{index}", class_="report", aria_labelledby=f"{prefix}verdict")


class _Sections:
    """Of one report, with the list of links to them. Landmarks need unique names: with several reports, the sections are none."""

    def __init__(self, prefix: str, alone: bool) -> None:
        self.prefix, self.alone = prefix, alone
        self.every: list[Markup] = []
        self._links: list[Markup] = []

    def add(self, title: str, content: Child, *, folded: bool = False) -> None:
        """`folded`: for sections that one looks up rather than reads."""
        id = self.prefix + title.partition(" (")[0].lower().replace(" ", "-")
        heading = tag("h3", title, id=id)
        whole = tag("details", tag("summary", heading), content, class_="folded") if folded else join(heading, content)
        self.every.append(tag("section", whole, aria_labelledby=id if self.alone else None))
        self._links.append(tag("li", tag("a", title, href=f"#{id}")))

    def contents(self, target: str) -> Markup:
        return tag("nav", tag("ul", self._links), class_="sections", aria_label=f"Sections of {target}")


def _depth(report: Report, every: Sequence[Layer], rows: Sequence[int], prefix: str) -> Markup:
    """Two pictures of the same columns, and what a cursor over them reads. `rows`: the columns' rows in the table of every layer."""
    m, layers = report.measurement, [every[i] for i in rows]
    choices = statistics(m, layers)
    said = tag(
        "p",
        "Every layer from input (left) to output, before the first step: ",
        _key("gradient"),
        "the gradient, ",
        _key("output"),
        f"the output. Dashed: at step {m.measured_steps[-1] if m.measured_steps else 0}. Band: lowest to highest of the measured steps. ",
        tag("span", "Point at a layer, or use the arrow keys.", class_="scripted"),
    )
    data = {"rows": rows, "steps": m.measured_steps, "stats": {s.name: [s.title, s.low, s.high, int(s.log), encoded(s)] for s in choices}}
    chart, names_at = depth_chart(report, layers, prefix)
    over_steps = None
    if choices:
        title = tag("h4", "Over the training")
        heat = tag("div", heatmap(m, layers, choices, prefix, names_at), class_="scroll", tabindex=0)
        over_steps = join(title, chooser(choices, prefix), heat)
    charts = tag("div", chart, class_="scroll", tabindex=0)
    plain = Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    numbers = tag("script", plain, type="application/json", class_="numbers")
    return join(said, tag("div", charts, over_steps, numbers, class_="over-depth"))


def _key(kind: str) -> Markup:
    return tag("i", class_=f"key {kind}")


def _bar(reports: Sequence[Report]) -> Markup:
    target = reports[0].target if len(reports) == 1 else f"{len(reports)} targets"
    toggle = tag("button", "dark or light", type="button", id="theme", hidden=True)
    unfold = tag("button", "unfold all", type="button", id="unfold", hidden=True)
    heading = tag("h1", "gradcheck ", tag("code", target))
    return tag("header", heading, tag("span", class_="space"), unfold, toggle, class_="bar")


def _contents(reports: Sequence[Report]) -> Markup:
    rows = [
        tag("li", sign(level(r)), tag("a", tag("code", r.target), href=f"#r{i}"), tag("span", sentence(r), class_="soft"))
        for i, r in enumerate(reports)
    ]
    return tag("nav", tag("ul", rows), class_="contents", aria_label="Targets")


@functools.cache
def asset(file: str) -> str:
    """A file beside this one, without its indentation and lines of comment."""
    lines = files("gradcheck.report.html").joinpath(file).read_text(encoding="utf-8").splitlines()
    return "\n".join(bare for line in lines if (bare := line.strip()) and not bare.startswith("// "))


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
    parts = (tag("h2", f"Trial of {result.target}"), tag("p", inline(result.verdict), class_="message"), trial(result))
    return _view(tag("article", *parts, class_="report"))


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
