"""How the numbers came about, what was not measured, and the rules that found nothing, and why."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from gradcheck.analysis.wording import counted, number
from gradcheck.judge.registry import builtin_rules
from gradcheck.report.formatting import clean, guesses, layer_count, scaled
from gradcheck.report.html.markup import Child, inline, join, sign, tag
from gradcheck.report.rows import unmeasured
from gradcheck.types.finding import Finding, RuleState, RuleStatus
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report

# Status -> sign, title, what it means; in the order of the page.
GROUPS: Mapping[RuleStatus, tuple[str, str, str]] = {
    "crashed": ("error", "Crashed", "the rule itself raised an error: please report it"),
    "not-measured": ("warning", "Not measured", "what these rules judge could not be measured, so they say nothing"),
    "suppressed": ("none", "Suppressed", "found, and silenced by a comment or by the settings"),
    "passed": ("good", "Passed", "measured, and within the limits"),
    "not-applicable": ("none", "Not applicable", "the model or the training has nothing for them to judge"),
}


def states(report: Report) -> Markup:
    return join(_known(report), (_group(report, status) for status in GROUPS))


def _known(report: Report) -> Markup | None:
    """Findings that the baseline lists."""
    rows = _silenced(report.known)
    return _state("none", f"Known ({len(rows)})", "found, listed in the baseline, and no worse than it says", rows) if rows else None


def _group(report: Report, status: RuleStatus) -> Markup | None:
    level, title, meaning = GROUPS[status]
    rules = [s for s in report.rules if s.status == status]
    rows = _silenced(report.suppressed) if status == "suppressed" else []
    if not rows and not rules:
        return None
    return _state(level, f"{title} ({len(rows or rules)})", meaning, rows or _rules(rules), opened=status == "crashed")


def _silenced(findings: Sequence[Finding]) -> list[Markup]:
    return [tag("li", tag("b", f.name), " ", tag("code", f.code), " ", f.message) for f in findings]


def _state(level: str, title: str, meaning: str, rows: Sequence[Markup], *, opened: bool = False) -> Markup:
    head = tag("summary", sign(level), tag("b", title), tag("span", meaning, class_="gist"))
    return tag("details", head, tag("ul", rows, class_="rules"), class_="state", open=opened)


def _rules(states: Sequence[RuleState]) -> list[Markup]:
    """A row for each reason, with all rules that have it."""
    summaries = {r.code: r.summary for r in builtin_rules()}
    said: dict[str, list[RuleState]] = {}
    for s in states:
        said.setdefault(s.reason or (summaries.get(s.code, "") if s.status == "passed" else ""), []).append(s)
    return [
        tag("li", [(", " if i else "", tag("b", s.name), " ", tag("code", s.code)) for i, s in enumerate(of)], " ", why)
        for why, of in said.items()
    ]


TRAINED = (
    "The model was trained for a short time on a copy. At the measured steps every layer's output and the gradient of the loss with "
    "respect to it were summarised in one pass. "
)
WATCHED = (
    "The training itself was watched. At the measured steps every layer's output and the gradient of the loss with respect to it were "
    "summarised in one pass. "
)
SEEN = (
    "The training could not be repeated on a copy. What its own steps showed was noted: the loop, and which parameters the loss reaches. "
)
METHOD = (
    "Rules compare these numbers with limits, whose sources are on each rule's page. "
    "An error is a prediction that training fails; it is given when the measured value alone leaves no doubt, or when a training "
    "confirmed it. What shows only after hours of training is out of sight."
)
MOST_TIMES = 8


def method(report: Report) -> Markup:
    rows = [join(tag("dt", key), tag("dd", value)) for key, value in _facts(report)]
    m = report.measurement
    how = WATCHED if m.probe.live else TRAINED if m.measured_steps else SEEN
    return join(tag("p", how + METHOD), tag("dl", rows), _assumptions(report), _unmeasured(report), _times(report))


def _facts(report: Report) -> Iterator[tuple[str, Child]]:
    m = report.measurement
    e, o, d = m.environment, m.optimizer, m.data
    yield "target", tag("code", report.target)
    yield "gradcheck", report.version or "unknown"
    yield "environment", f"torch {e.torch}, Python {e.python}, {e.platform}"
    yield "device", f"{e.device}, {e.dtype}, {counted(e.threads, 'thread')}"
    yield "seeds", ", ".join(str(x.seed) for x in report.measurements)
    yield "steps", f"{m.steps}; measured at {', '.join(map(str, m.measured_steps))}"
    yield "model", _model(m)
    yield "optimizer", f"{clean(o.name)} at rate {number(o.lr)}" + ("" if o.given else " (assumed)")
    if m.critical is not None:
        yield "critical rate", f"yours is {number(m.critical.share)} of that at which the loss rises along the first update"
    yield "data", f"{d.batches} {'batch' if d.batches == 1 else 'batches'} of {d.batch_size}" + ("" if d.given else " (made up)")
    yield "loss", ", ".join(dict.fromkeys(clean(c.function) for c in m.losses)) or "not seen"
    yield "time", f"{report.seconds:.1f} s"


def _model(m: Measurement) -> str:
    count = scaled(sum(p.count for p in m.parameters))
    return f"{counted(layer_count(m), 'layer')}, {count} parameters" + ("" if m.training else ", handed over in evaluation mode")


def _assumptions(report: Report) -> Markup | None:
    every = guesses(report, all_of_them=True)
    rows = [tag("li", tag("b", "found: " if a.given else "assumed: "), inline(a.text)) for a in every]
    return join(tag("h4", "What was found and what was assumed"), tag("ul", rows)) if rows else None


def _unmeasured(report: Report) -> Markup | None:
    rows = [tag("li", note) for note in unmeasured(report)]
    return join(tag("h4", "What was not measured"), tag("ul", rows)) if rows else None


def _times(report: Report) -> Markup | None:
    """The phases that took longest, over all seeds."""
    total: dict[str, float] = {}
    for m in report.measurements:
        for phase, seconds in m.seconds.items():
            total[phase] = total.get(phase, 0.0) + seconds
    longest = sorted(((s, p) for p, s in total.items() if p != "total" and s >= 0.01), reverse=True)[:MOST_TIMES]
    if not longest:
        return None
    rows = [tag("tr", tag("td", phase), tag("td", f"{seconds:.2f} s", class_="n")) for seconds, phase in longest]
    return join(tag("h4", "Where the time went"), tag("table", tag("tbody", rows), class_="times"))
