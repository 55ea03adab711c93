"""Which of the kept treatments go into the source."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gradcheck.repair.edits import source_edits, with_diffs
from gradcheck.repair.verification import Verified
from gradcheck.types.fix import Fix, Outcome
from gradcheck.types.report import Report
from tests.remedies.editing.sheets import HEAD, Sheet
from tests.report.reports import finding

CURE = Fix("add-to-optimizer", "give it all", "wiring", "safe", findings=("GRAPH003",))
RATE = Fix("raise-learning-rate", "raise it", "optimizer", "safe", {"lr": 1.0})


@pytest.mark.parametrize(("severity", "written"), [("error", False), ("warning", True)])
def test_what_no_finding_asked_for_is_not_written_without_the_cure_of_an_error(
    severity: str, written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = HEAD + "optimizer = torch.optim.SGD(chosen(), lr=0.1)\n"
    measurement = Sheet(text).optimizer("torch.optim.SGD(chosen(), lr=0.1)", "SGD", lr=0.1).measurement
    report = Report("model.py", (finding("GRAPH003", severity),), (), (measurement,))
    kept = tuple(Outcome(p, "kept") for p in (CURE, RATE))
    verified, workload = Verified((CURE, RATE), kept, None, report, None), SimpleNamespace(files=("model.py",))
    source, why = source_edits(verified, workload)
    assert source is not None and not why and bool(source.drafts) is written
    cure, rate = with_diffs(verified, workload, source)
    assert not cure.diff and "not written" in cure.reason
    assert bool(rate.diff) is written
    assert ("chosen together with add-to-optimizer, which is not in the source" in rate.reason) is not written
