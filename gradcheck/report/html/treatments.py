"""What was tried against a finding: the measured values before and after, what it did to the loss, and its edit."""

from collections.abc import Mapping

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.report.formatting import HEALTHY, counted
from gradcheck.report.html.markup import inline, join, name, tag, text
from gradcheck.report.html.theme import sign
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Change, Effect, Outcome, OutcomeStatus
from gradcheck.types.report import Report

# Status -> sign, words.
WORDS: Mapping[OutcomeStatus, tuple[str, str]] = {
    "kept": ("good", "tried, and it helps"),
    "not-needed": ("none", "not needed"),
    "not-verified": ("warning", "tried, and it helps no more than noise"),
    "worse": ("error", "tried, and it made something worse"),
    "inapplicable": ("none", "cannot be applied here"),
    "failed": ("error", "tried, and it failed"),
    "advice": ("none", "advice"),
    "untried": ("none", "not tried"),
}


def treatments(report: Report, finding: Finding) -> Markup | None:
    """Outcomes of the treatments meant to cure this finding."""
    mine = [o for o in report.outcomes if finding.code in o.prescription.findings]
    return join(tag("h4", "What was tried"), [_outcome(o) for o in mine]) if mine else None


def proof(report: Report) -> Markup | None:
    """Everything that was kept, together, against the untreated model."""
    p = report.proof
    if p is None:
        return None
    parts = [f"cured: {', '.join(p.cured)}"] if p.cured else []
    parts += [f"left: {', '.join(p.left)}"] if p.left else []
    how = "trained in pairs with the untreated model on seeds that had no part in choosing it"
    said = tag("p", f"All that was kept, together, {how if p.effect else 'in a run of the edited script'}:")
    effect = effect_sentence(p.effect) if p.effect else None
    return tag("div", said, effect, tag("p", "; ".join(parts)) if parts else None, class_="proof")


def _outcome(o: Outcome) -> Markup:
    p = o.prescription
    level, words = WORDS[o.status]
    head = (sign(level), tag("b", inline(p.text)), " ", tag("span", p.applicability, class_=f"badge {p.applicability}"))
    said = inline(f"{words}: {o.reason}" if o.reason else words)
    body = (_changes(o), effect_sentence(o.effect) if o.effect else None, _codes(o), _note(p.checkpoint), diff(o.diff) if o.diff else None)
    return tag("div", tag("p", *head), tag("p", said, class_="soft"), *body, class_="outcome")


def _changes(o: Outcome) -> Markup | None:
    if not o.changes:
        return None
    head = tag("tr", [tag("th", h, scope="col") for h in ("measured", "before", "after", "needs", "at")])
    table = tag("table", tag("thead", head), tag("tbody", [_change(c) for c in o.changes]))
    return tag("div", table, class_="wide")


def _change(c: Change) -> Markup:
    after = "no longer found" if c.after is None else number(c.after)
    needs = f"{HEALTHY.get(c.comparison, 'not')} {number(c.limit)}" if c.limit is not None else "–"
    unit = tag("span", f", {c.unit}", class_="soft") if c.unit else None
    at = name(c.layer) if c.layer is not None else "–"
    cells = (join(c.quantity, unit), number(c.before), tag("b", after), needs, at)
    return tag("tr", [tag("td", cell) for cell in cells])


def effect_sentence(e: Effect) -> Markup:
    """The paired difference with its interval, in one sentence."""
    seeds = counted(e.seeds, "seed")
    interval = f"difference {number(e.difference)}, 95 % interval {number(e.low)} to {number(e.high)}, {seeds}"
    verdict = "" if e.better else "; not clearly better"
    return tag("p", f"{e.metric}: {number(e.base)} without, ", tag("b", f"{number(e.treated)} with it"), f" ({interval}{verdict})")


def _codes(o: Outcome) -> Markup | None:
    parts = [f"cured: {', '.join(o.cured)}"] if o.cured else []
    parts += [f"new with it: {', '.join(o.new)}"] if o.new else []
    return tag("p", "; ".join(parts)) if parts else None


def _note(checkpoint: str) -> Markup | None:
    return tag("p", "Checkpoints: ", inline(checkpoint)) if checkpoint else None


def diff(unified: str) -> Markup:
    """A unified diff; the + and - at the start of each line say what its colour does."""
    return tag("pre", Markup("\n".join(_marked(line) for line in unified.splitlines())), class_="diff", tabindex=0)


def _marked(line: str) -> Markup:
    kinds = {"+": "added", "-": "removed", "@": "hunk"}
    kind = "hunk" if line.startswith(("+++ ", "--- ")) else kinds.get(line[:1])
    return Markup(f'<span class="{kind}">{text(line)}</span>') if kind else text(line)
