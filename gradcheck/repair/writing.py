"""The plan is written into the source files, and what was written is scanned in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gradcheck.errors import GradcheckError, SavedRunError
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.repair.rescan import looked_at, severities
from gradcheck.report.json import load_all
from gradcheck.types.fix import Fix
from gradcheck.types.report import Report

Promise = tuple[Report, Sequence[str]]  # what was found before, and which codes of it have to be gone


class WriteError(GradcheckError):
    """The written files do not do what was proved on the copy; the originals are back in place."""


def write_and_scan(source: SourcePlan, promised: Sequence[Promise], words: Sequence[str], allow_dirty: bool) -> list[Report]:
    """Writes the files and returns a scan of them. `promised`: of each training; `words`: arguments of `gradcheck scan`.

    Raises WriteError, with the original files restored, when the scan fails, a promised code is still there, or an error is new;
    and what `SourcePlan.write` raises when nothing may be written.
    """
    source.write(allow_dirty=allow_dirty)
    try:
        reports = _scanned(words)
        for before, codes in promised:
            _check(before, codes, reports)
    except BaseException:  # Ctrl-C too: a half-checked file is not left behind
        source.restore()
        raise
    return reports


def _scanned(words: Sequence[str]) -> list[Report]:
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "run.json"
        command = [
            sys.executable,
            "-m",
            "gradcheck",
            "scan",
            "--quiet",
            "--exit-zero",
            "--no-baseline",
            "--output",
            f"json:{saved}",
            *words,
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
        try:
            return list(load_all(saved))
        except SavedRunError as error:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            why = next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "no report was written")
            hint = "the original files are back; the treated model itself is what `gradcheck.fix` returns"
            raise WriteError(f"the written file cannot be scanned: {why}", hint=hint) from error


def _check(before: Report, promised: Sequence[str], reports: Sequence[Report]) -> None:
    old = severities(before)
    same = [r for r in reports if r.target == before.target] or reports
    now = {code: severity for r in same for code, severity in severities(r).items()}
    stays = [code for code in promised if code in now and (now[code] == "error" or old.get(code) == "warning")]
    new = [code for code, severity in now.items() if severity == "error" and old.get(code) != "error"]
    looked = frozenset[str]().union(*map(looked_at, same))
    unseen = [code for code in promised if code not in looked and code not in stays]
    problem = f"{', '.join(stays)} would still be found" if stays else f"{', '.join(new)} would come up" if new else ""
    if unseen and not problem:
        problem = f"{', '.join(unseen)} could not be looked for"
    if problem:
        raise WriteError(f"nothing was written: after the edits {problem}", hint="the original files are back; `--diff` shows the edits")


def promises(source: SourcePlan, cured: Sequence[str], findings: Sequence[Fix]) -> list[str]:
    """Of the cured codes those whose whole treatment could be written."""
    missing = {code for p, _ in source.unwritten for code in p.findings}
    written = {code for p in findings for code in p.findings}
    return [code for code in cured if code in written and code not in missing]
