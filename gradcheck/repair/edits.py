"""Edits of the source for the remedies that helped on copies. They are scanned in a fresh process, in a mirror of their folders, and then
written.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gradcheck import interpreter
from gradcheck.capture.mirror import Mirror
from gradcheck.errors import GradcheckError, SavedRunError
from gradcheck.files import temporary_folder
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.remedies.writers import plan_edits
from gradcheck.repair.rescan import faulty, looked_at, severities
from gradcheck.repair.verification import Verified
from gradcheck.saved_run import load_all
from gradcheck.types.fix import Fix, Outcome
from gradcheck.types.report import Report
from gradcheck.workload.workload import Workload


def source_edits(verified: Verified, workload: Workload) -> tuple[SourcePlan | None, str]:
    """The plan as edits of the user's files; or None, and why there are none."""
    if not verified.plan:
        return None, ""
    if not workload.files:
        return None, "the model does not come from a file"
    try:
        return _written_together(verified, workload), ""
    except GradcheckError as error:
        return None, error.message


def _written_together(verified: Verified, workload: Workload) -> SourcePlan:
    """The edits. Remedies that no finding asked for are written only together with the cure of an error."""
    measurement, files = verified.before.measurement, list(workload.files)
    source = plan_edits(verified.plan, measurement, files)
    errors = {f.code for f in faulty(verified.before) if f.severity == "error"}
    missing = dict.fromkeys(p.treatment for p, _ in source.unwritten if errors.intersection(p.findings))
    extras = [p for p in source.written if not p.findings]
    if not missing or not extras:
        return source
    why = f"it was chosen together with {', '.join(missing)}, which is not in the source"
    rest = [p for p in verified.plan if p not in extras]
    alone = plan_edits(rest, measurement, files)
    return replace(alone, unwritten=(*alone.unwritten, *((p, why) for p in extras)))


def with_diffs(verified: Verified, workload: Workload, source: SourcePlan | None) -> list[Outcome]:
    """The outcomes. Each kept one has its part of the edits, or the reason why there is none."""
    if source is None:
        return list(verified.outcomes)
    done = []
    for outcome in verified.outcomes:
        if outcome.status == "kept":
            alone = plan_edits([outcome.prescription], verified.before.measurement, list(workload.files))
            why = next((why for p, why in source.unwritten if p.treatment == outcome.prescription.treatment), "")
            note = f"not written: {why}" if why else ""
            diff = "" if why else alone.own_diff
            outcome = replace(outcome, diff=diff, reason="; ".join(x for x in (outcome.reason, note) if x))
        done.append(outcome)
    return done


Promise = tuple[Report, Sequence[str]]  # what was found before, and which of its codes must be gone


class WriteError(GradcheckError):
    """The edited files do not do what was proved on the copy; nothing was written."""


def scan_and_write(source: SourcePlan, promised: Sequence[Promise], words: Sequence[str], allow_dirty: bool) -> list[Report]:
    """Writes the files once a scan of them has proved the edits, and returns that scan. No file ever holds unproved edits.

    `promised`: of each training; `words`: arguments of `gradcheck scan`. Raises WriteError when the scan fails, a promised code is still
    there, or an error is new; and what `SourcePlan.write` raises when nothing may be written.
    """
    source.refuse(allow_dirty=allow_dirty)
    reports = _scanned(source, words)
    for before, codes in promised:
        _check(before, codes, reports)
    source.write(allow_dirty=allow_dirty)
    return reports


def _scanned(source: SourcePlan, words: Sequence[str]) -> list[Report]:
    """The scan of the edited files, in a mirror of their folders and of the working directory."""
    here = Path.cwd()
    edits = {Path(path).resolve(): data for path, data in source.texts.items()}
    with temporary_folder() as folder:
        saved = Path(folder) / "run.json"
        home = Path(folder) / "mirror"
        home.mkdir()
        mirror = Mirror(home, (*(file.parent for file in edits), here), edits)
        options = ["--quiet", "--exit-zero", "--no-baseline", "--output", f"json:{saved}"]
        command = interpreter.command("gradcheck.cli.main", ["scan", *options, *(_mirrored(mirror, word) for word in words)])
        paths = [twin for entry in sys.path if (twin := mirror.of_edited(Path(entry))) is not None]
        environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=mirror.path(here))
        try:
            return list(load_all(saved))
        except SavedRunError as error:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            why = next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "no report was written")
            hint = "nothing was written; the treated model itself is what `gradcheck.fix` returns"
            raise WriteError(f"the edited file cannot be scanned: {why}", hint=hint) from error


def _mirrored(mirror: Mirror, word: str) -> str:
    """A word of the command line that names an edited file by its whole path."""
    path, colon, name = word.partition(":")
    if not os.path.isabs(path) or Path(path).resolve() not in mirror.edited:
        return word
    return f"{mirror.path(Path(path).resolve())}{colon}{name}"


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
        raise WriteError(f"nothing was written: after the edits {problem}", hint="`--diff` shows the edits")


def promises(source: SourcePlan, cured: Sequence[str], findings: Sequence[Fix]) -> list[str]:
    """The cured codes whose whole fix could be written."""
    missing = {code for p, _ in source.unwritten for code in p.findings}
    written = {code for p in findings for code in p.findings}
    return [code for code in cured if code in written and code not in missing]
