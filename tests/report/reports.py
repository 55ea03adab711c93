"""Reports for tests of the formats: faulty and hostile ones, of literals."""

from __future__ import annotations

from typing import Any

from gradcheck.report.formatting import View
from gradcheck.types.finding import Evidence, Finding, Remedy, RuleState, Severity
from gradcheck.types.measurement import NotMeasured
from gradcheck.types.report import Report
from tests.literals import location, measurement

VIEW = View()
HOSTILE = '</script><b onload=x> ]]> | `` ``` "quoted" 100% @someone\x1b[31m\x00\ud800 ::error::\r\nλ 𝛼, a:b'


def finding(code: str = "GRAD001", severity: Severity = "error", line: int | None = 3, **fields: Any) -> Finding:
    names = {"GRAD001": "vanishing-gradient", "ACT002": "dead-units", "DATA001": "unscaled-input", "LOSS005": "loss-not-falling"}
    values: dict[str, Any] = {
        "message": f"{code} is faulty",
        "layers": ("body.0", "body.1"),
        "location": None if line is None else location(line),
        "evidence": (Evidence("slope", 0.5, 0.1, ">", "decades"),),
        "remedies": (Remedy("he-init", "initialise it"),),
    }
    return Finding(code, names.get(code, code.lower()), severity, **values | fields)


def report(*findings: Finding, states: tuple[RuleState, ...] = (), **overrides: Any) -> Report:
    """A report on model.py with these findings, whose rules fired; `states` are those of further rules."""
    fired = tuple(RuleState(f.code, f.name, "finding") for f in {f.code: f for f in findings}.values())
    m = measurement(snippets={"model.py": {2: "# above", 3: "λ = 'α'; self.fc = nn.Linear(8, 8)", 4: "# below"}})
    values: dict[str, Any] = {"findings": findings, "rules": (*fired, *states), "measurements": (m,), "seconds": 1.5, "version": "0.1.0"}
    return Report(**{"target": "model.py"} | values | overrides)


PASSED = RuleState("ACT001", "saturated-activation", "passed")
SKIPPED = RuleState("NORM003", "batchnorm-small-batch", "not-applicable", "no batch normalization")
CRASHED = RuleState("DATA002", "uninformative-features", "crashed", "ZeroDivisionError: division by zero")

FAULTY = finding()
FOLLOWS = finding("LOSS005", cause="GRAD001")
WARNING = finding("ACT002", "warning", line=7)
INFO = finding("DATA001", "info", line=None, evidence=(), layers=())
NASTY = finding("ACT002", "warning", line=5, message=HOSTILE, layers=(HOSTILE,), location=location(5, path='mo"del <b>.py'))

MIXED = report(INFO, WARNING, FAULTY, FOLLOWS, states=(PASSED, SKIPPED, CRASHED))
CLEAN = report(states=(PASSED, SKIPPED))

BLIND = measurement(
    layers=(),
    snippets={"model.py": {}},
    not_measured=(
        NotMeasured("signals", "could not repeat the training step", remedy="watch it"),
        NotMeasured("units", "could not repeat the training step", remedy="watch it"),
        NotMeasured("derivatives", "left out by --fast", "left-out"),
    ),
)
UNSEEN = (
    RuleState("GRAD001", "vanishing-gradient", "not-measured", "signals: could not repeat", "signals"),
    RuleState("ACT002", "dead-units", "not-measured", "units: could not repeat", "units"),
    RuleState("GRAPH005", "wrong-gradient", "not-measured", "derivatives: left out", "derivatives"),
)
IN_PART = report(states=(*UNSEEN, PASSED), measurements=(BLIND,))
FAILED = report(finding("DATA001", "error"), states=(*UNSEEN, PASSED), measurements=(BLIND,))
FULL_OF_HOSTILITY = report(NASTY, target=HOSTILE)
