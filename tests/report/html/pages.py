"""Reports and a reader of pages for the tests of the HTML format."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

from gradcheck.judge.registry import builtin_rules
from gradcheck.types.finding import Evidence, Finding, Remedy, RuleState
from gradcheck.types.fix import Change, Effect, Fix, Outcome, Proof
from gradcheck.types.layers import Snapshot
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Assumption, NotMeasured
from gradcheck.types.parameters import ParameterStep
from gradcheck.types.report import Report
from gradcheck.types.training import Run
from gradcheck.types.trial import Curve, Entry, Interaction, MetricRange, SearchPoint, TrialResult
from tests.literals import diverged, falling, layer, location, measurement, parameter, run, stalled, stats

VOID = {"meta", "input", "br", "wbr", "hr"}
UNCLOSED = {"td", "tr"}  # whose end HTML lets one leave out
STEPS = (0, 1, 3, 10, 30, 96, 97, 98, 99)
NAMES = ("self_attn.q_proj", "act", "norm1", "linear1", "linear2", "act2", "norm2", "out_proj")
KINDS = ("linear", "activation", "norm", "linear")
FAULTY = {"GRAD001": "error", "INIT001": "warning", "OPT003": "info"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    inside: list[Element] = field(default_factory=list)

    def all(self, tag: str | None = None, **attributes: str) -> list[Element]:
        """Elements below this one, in order; `class_` matches one of the classes."""
        found = []
        for child in self.inside:
            if tag in (None, child.tag) and all(child.has(k.strip("_"), v) for k, v in attributes.items()):
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def has(self, name: str, value: str) -> bool:
        mine = self.attributes.get(name) or ""
        return value in mine.split() if name == "class" else value == mine

    @property
    def words(self) -> str:
        return self.text + "".join(child.words for child in self.inside)


class Page(HTMLParser):
    """A tree of elements. Raises AssertionError for tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]
        self.starts: list[tuple[str, tuple[str, ...]]] = []  # every start tag with the names of its attributes
        self.feed(source)
        self.close()
        assert self.open == [self.root], f"not closed: {[e.tag for e in self.open[1:]]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, tuple(name for name, _ in attrs)))
        ends = {"td": ("td",), "tr": ("td", "tr")}.get(tag, ())
        while self.open[-1].tag in ends:
            self.open.pop()
        element = Element(tag, dict(attrs))
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        while self.open[-1].tag in UNCLOSED and self.open[-1].tag != tag:
            self.open.pop()
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(Element("#text", {}, data))


def deep(count: int, seed: int = 0) -> Report:
    """A model of `count` layers whose gradient vanishes, with nine measured steps and three findings."""
    r = random.Random(seed)
    layers, parameters = [], []
    for i in range(count):
        name = f"encoder.layers.{i // 8}.{NAMES[i % 8]}"
        size = 10 ** (-4 + 4 * i / count + r.gauss(0, 0.1))
        shots = tuple(Snapshot(s, stats(10 ** r.gauss(0, 0.1)), stats(size * 10 ** r.gauss(0, 0.2))) for s in STEPS)
        layers.append(layer(name, KINDS[i % 4], order=i, site=location(10 + i % 8), snapshots=shots))
        if KINDS[i % 4] == "linear":
            steps = tuple(ParameterStep(s, 5.0, 0.1, update_ratio=10 ** r.gauss(-3, 0.3)) for s in STEPS)
            parameters.append(parameter(f"{name}.weight", steps=steps))
    lines = {n: f"        self.l{n} = nn.Linear(8, 8)" for n in range(8, 20)}
    m = measurement(layers=tuple(layers), parameters=tuple(parameters), measured_steps=STEPS, snippets={"model.py": lines})
    names = [x.name for x in layers]
    findings = tuple(faulty(code, severity, names[: max(1, count // (1 + k))]) for k, (code, severity) in enumerate(FAULTY.items()))
    return Report("model.py:Net", findings, states(), (m,), (), 4.2, "0.1.0")


def faulty(code: str = "GRAD001", severity: str = "error", layers: list[str] | None = None, **overrides: object) -> Finding:
    evidence = (Evidence("slope over depth", 0.5, 0.075, ">=", "decades per layer", (layers or [""])[0]),)
    remedies = (Remedy("he-init", "initialise with `kaiming_normal_`", "safe"), Remedy("skip", "add the input", "unsafe"))
    name = next(rule.name for rule in builtin_rules() if rule.code == code)
    values = {"location": location(12), "evidence": evidence, "remedies": remedies, "confirmed": "by the measured value alone"}
    return Finding(code, name, severity, f"{name}: 0.5 (limit 0.075)", tuple(layers or ()), **values | overrides)


def states() -> tuple[RuleState, ...]:
    """Of every rule that judges a model: found, passed, or not applicable, in turn."""
    rows = []
    for k, rule in enumerate(r for r in builtin_rules() if "log" not in r.needs):
        status = "finding" if rule.code in FAULTY else "passed" if k % 2 else "not-applicable"
        rows.append(RuleState(rule.code, rule.name, status, "" if status == "passed" else "there is no such layer in this model"))
    return tuple(rows)


def treated() -> Report:
    """A report with all that a report can hold: treatments, a proof, a trial, suppressed and known findings, failed experiments."""
    report = deep(12)
    consequence = faulty("LOSS005", "error", cause="GRAD001", evidence=(Evidence("fall of the loss", -1e-3, 0.1, "<"),))
    states_ = (
        *report.rules,
        RuleState("ACME001", "acme", "crashed", "ValueError: no"),
        RuleState("ACME002", "acme-two", "not-measured", "time"),
    )
    m = report.measurement
    m = measurement(
        **{name: getattr(m, name) for name in ("layers", "parameters", "measured_steps", "snippets")},
        probe=stalled(),
        experiments=(run(name="rate x0.1"), diverged(name="rate x10"), Run("raised", (2.3, 2.2), ended="raised", error="boom")),
        assumptions=(Assumption("loss", "no loss given: cross entropy"), Assumption("data", "data: 8 batches", given=True)),
        not_measured=(NotMeasured("derivatives", "time was up"),),
        seconds={"probe": 1.5, "total": 2.0},
    )
    effect = Effect("training loss", 2.3, 0.4, -1.9, -2.1, -1.7, 3, True)
    pairs = {"base": (stalled(), stalled()), "treated": (run(), run())}
    return Report(
        "model.py:Net",
        (*report.findings, consequence),
        states_,
        (m,),
        suppressed=(faulty("OPT003", "info"),),
        seconds=4.2,
        version="0.1.0",
        outcomes=(kept(effect, pairs), declined()),
        proof=Proof(effect, (stalled(),), (run(),), ("GRAD001",), ("INIT001",)),
        trial=trial(),
        known=(faulty("INIT001", "warning"),),
    )


def fixed() -> Report:
    """What `fix` leaves."""
    return replace(treated(), trial=None)


def watched() -> Report:
    """A program of 1,000 steps, of which some were measured."""
    report = deep(12)
    m, losses = report.measurement, falling(steps=300)
    probe = run(name="the watched run", losses=losses, live=True, gradient_norms=tuple(float(9 - i) for i in range(len(STEPS))))
    facts = LoopFacts("optimizer", 1000, 1000, rates=tuple(0.1 if i < 50 else 0.01 for i in range(100)))
    return replace(report, measurements=(replace(m, probe=probe, steps=1000, loop=facts),))


def kept(effect: Effect, pairs: dict[str, tuple[Run, ...]]) -> Outcome:
    p = Fix("he-init", "initialise 12 layers with kaiming_normal_", "initialization", "safe", findings=("GRAD001",))
    change = Change("GRAD001", "slope over depth", 0.5, 0.001, 0.075, ">=", "decades per layer", "stem")
    diff = "--- a/model.py\n+++ b/model.py\n@@ -1 +1 @@\n-nn.init.normal_(w, std=0.05)\n+nn.init.kaiming_normal_(w)\n context\n"
    return Outcome(p, "kept", "", (change,), ("GRAD001",), (), effect, diff=diff, **pairs)


def declined() -> Outcome:
    p = Fix("skip", "add the input", "architecture", "unsafe", findings=("GRAD001",), checkpoint="keys change")
    gone = Change("GRAD001", "slope over depth", 0.5, None)
    return Outcome(p, "worse", "the loss rises", (gone,), (), ("NUM001",))


def trial() -> TrialResult:
    steps = (0, 50, 99)

    def entry(name: str, status: str, level: float, **more: object) -> Entry:
        values = (2.3, (2.3 + level) / 2, level)
        curve = Curve(steps, values, tuple(v - 0.1 for v in values), tuple(v + 0.1 for v in values))
        return Entry(
            name, name, status, training=curve, validation=curve, seeds=3, scores=(MetricRange("accuracy", 0.8, 0.7, 0.9),), **more
        )

    words = "dropout lowers validation loss by 0.6"
    helps = entry("dropout", "helps", 0.9, text=words, effect=Effect("validation loss", 1.5, 0.9, -0.6, -0.7, -0.5, 3, True))
    broken = Entry("l1", "l1 0.1", "failed", reason="it raised")
    return TrialResult(
        "model.py:Net",
        "classification",
        "validation loss",
        entry("untreated", "untreated", 1.5),
        (helps, broken),
        "`dropout` helps",
        interactions=(Interaction(("dropout", "l1"), (-0.6, 0.1), -0.4, 0.1, -0.1, 0.3, "overlap"),),
        recommended="dropout",
        diff="--- a\n+++ b\n+nn.Dropout(0.3)\n",
        unwritten=(("early-stopping", "it belongs into the loop"),),
        searched=(SearchPoint("dropout", {"rate": 0.5}, None, "pruned"), SearchPoint("dropout", {"rate": 0.3}, 0.9, "complete")),
        steps=100,
        samples=(800, 200),
        seconds=12.0,
    )


def healthy() -> Report:
    passed = tuple(RuleState(rule.code, rule.name, "passed") for rule in builtin_rules())
    return Report("healthy.py", (), passed, (measurement(probe=run(falling())),), seconds=1.0, version="0.1.0")
