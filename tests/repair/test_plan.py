"""Which fixes findings lead to, and the statistics that are shown before and after."""

from __future__ import annotations

from gradcheck.config.settings import Settings
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.remedies.definition import remedy
from gradcheck.repair.plan import advice, allowed, fixes_for, refused
from gradcheck.repair.rescan import changes, worsened
from gradcheck.types.finding import Finding, Remedy
from gradcheck.types.report import Report
from tests.literals import diverged, measurement, optimizer, run


def treatment(name, stage, applicability="safe", apply=lambda patient, p: None, proposes=True):
    @remedy(name, name, "", stage=stage, applicability=applicability, apply=apply)
    def made(finding, m):
        return [made.fix(f"{name} it", finding, settings={"size": 1})] if proposes else []

    return made


VOCABULARY = {
    t.name: t
    for t in (
        treatment("clip", "clipping"),
        treatment("rewire", "wiring"),
        treatment("rebuild", "architecture", "unsafe"),
        treatment("nothing-here", "data", proposes=False),
        treatment("by-hand", "data", "advice", apply=None),
    )
}


def finding(code, *names, severity="error"):
    return Finding(code, code.lower(), severity, "faulty", remedies=tuple(Remedy(n, f"{n} by hand") for n in names))


def test_fixes_come_in_the_order_of_the_stages_and_once():
    found = fixes_for([finding("A001", "clip", "rebuild"), finding("B001", "rewire", "clip")], measurement(), VOCABULARY)
    assert [(p.treatment, p.findings) for p in found] == [("rewire", ("B001",)), ("rebuild", ("A001",)), ("clip", ("A001", "B001"))]


def test_unsafe_ones_are_refused_unless_allowed():
    found = fixes_for([finding("A001", "clip", "rebuild")], measurement(), VOCABULARY)
    assert [p.treatment for p in allowed(found, False)] == ["clip"] and [p.treatment for p in allowed(found, True)] == ["rebuild", "clip"]
    assert [o.prescription.treatment for o in refused(found, False)] == ["rebuild"] and refused(found, True) == []


def test_advice_is_what_no_treatment_applies_for_findings_that_are_left():
    findings = [finding("A001", "by-hand", "clip", "unheard-of", "nothing-here"), finding("B001", "by-hand")]
    found = advice(findings, measurement(), VOCABULARY, {"A001"})
    assert [o.prescription.text for o in found] == ["by-hand by hand", "unheard-of by hand", "nothing-here by hand"]
    assert all(o.status == "advice" and o.prescription.findings == ("A001",) for o in found)


def test_an_error_may_become_a_warning_but_no_new_error():
    assert worsened({"A001": "error"}, {"B001": "warning"}) == ()
    assert worsened({"A001": "error"}, {"B001": "error"}) == ("B001",)
    assert worsened({"A001": "warning"}, {"B001": "warning"}) == ("B001",)
    assert worsened({"A001": "warning"}, {"A001": "error"}) == ("A001",)
    assert worsened({"A001": "error"}, {"A001": "warning"}) == ()


def report(m):
    settings = Settings(select=("OPT001",))
    findings, _, states = judge([m], chosen(settings), settings)
    return Report("model.py", findings, states, (m,))


def test_the_statistic_of_a_finding_that_is_gone_is_measured_all_the_same():
    """The rule is given no limits, so that it tells its numbers of the healthy model too."""
    slower = run([2.3 * 0.97**i for i in range(100)], "rate x0.1", rate_factor=0.1, lr=1.0)
    faulty = report(measurement(probe=diverged(), experiments=(slower,), optimizer=optimizer("SGD", lr=10.0)))
    assert faulty.findings, faulty.rules
    healthy = report(measurement(optimizer=optimizer("SGD", lr=1.0)))
    found = {c.quantity: c for c in changes(faulty, healthy, ["OPT001"], Settings())}
    assert found and all(c.limit is not None for c in found.values())
    assert changes(faulty, faulty, ["OPT001"], Settings())[0].before == changes(faulty, faulty, ["OPT001"], Settings())[0].after
    assert changes(faulty, healthy, ["GRAD001"], Settings()) == ()
