"""Scans whole training scripts of many frameworks, each healthy and with one realistic fault; benchmarks/scripts_case.py tells their form.

python benchmarks/scripts.py --venv DIR                     makes the environment in DIR if need be, and scans all of them
python benchmarks/scripts.py --venv DIR --only 'hf_*' -v    some of them, with what was said
python benchmarks/scripts.py --venv DIR --write docs/accuracy.md
python benchmarks/scripts.py --venv DIR --check             no scan: runs them to their end: the healthy must get good, the faulty not
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

import scripts_case
from scripts_case import Case
from scripts_table import table

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = Path(__file__).parent / "scripts" / "requirements.txt"
TORCH = "torch==2.13.0"
T = TypeVar("T", "Outcome", "Ending")
VARIANTS = ("healthy", "faulty")
SCAN_LIMIT = 300  # seconds for one scan, with the script's own steps and its imports
RUN_LIMIT = 900  # seconds for one whole run
SCRIPT_PHASE = "the script's own steps"  # as a saved run calls them
BEGIN, END = "<!-- scripts -->\n", "<!-- end of scripts -->\n"


@dataclass
class Outcome:
    """What the scan of one variant said."""

    name: str
    variant: str
    judged: str = "refused"  # in full, in part, refused, crashed
    seconds: float = 0.0  # of CPU, all of them: imports, the script's own steps, the scan
    beyond: float | None = None  # of CPU beyond the script's own steps (with its imports) and the import of torch
    findings: list[tuple[str, str, int | None, str]] = field(default_factory=list)  # severity, code, line, message
    named: str = ""  # of a faulty one: "line", "cause" (at another line), or "" (not named)
    said: str = ""  # why there is no verdict, or one in part

    def of(self, severity: str) -> list[str]:
        return [code for s, code, _, _ in self.findings if s == severity]

    def line(self) -> str:
        found = "  ".join(f"{s} {code}:{line}" for s, code, line, _ in self.findings if s != "info")
        named = {"line": "  NAMED", "cause": "  named at another line"}.get(self.named, "  MISSED") if self.variant == "faulty" else ""
        return f"{self.name:28s} {self.variant:8s} {self.judged:8s} {self.seconds:6.1f} s{named}  {found}{self.said and '  ' + self.said}"


def make_environment(folder: Path) -> None:
    """torch first, as it brings what it needs; then the pinned rest, without what nobody here uses (torchvision, spaCy)."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", TORCH], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-r", str(REQUIREMENTS)], check=True)
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    where = subprocess.run(ask, check=True, capture_output=True, text=True)
    (Path(where.stdout.strip()) / "aa_gradcheck_checkout.pth").write_text(f"{ROOT}\n")


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def run(command: Sequence[str], folder: Path, venv: Path, limit: float) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and seconds of CPU, children included."""
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(venv), stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True
        )
        alarm = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read(), err.read(), usage.ru_utime + usage.ru_stime


@cache
def torch_seconds(venv: Path) -> float:
    """Seconds of CPU that importing torch takes."""
    with tempfile.TemporaryDirectory() as name:
        return run([str(venv / "bin" / "python"), "-c", "import torch"], Path(name), venv, SCAN_LIMIT)[3]


def scan(case: Case, variant: str, venv: Path) -> Outcome:
    outcome = Outcome(case.name, variant)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case.write(variant, folder)
        saved = folder / "gradcheck.json"
        command = [str(venv / "bin" / "python"), "-m", "gradcheck", "scan", "-q", "--output", f"json:{saved}"]
        _, _, stderr, outcome.seconds = run([*command, *case.scan_arguments()], folder, venv, SCAN_LIMIT)
        if not saved.exists():
            outcome.judged = "crashed" if "gradcheck failed" in stderr or "Traceback" in stderr else "refused"
            outcome.said = " ".join(stderr.split())[-300:]
            return outcome
        document = json.loads(saved.read_text())
    reports = document.get("reports", [document])
    if any(m["loop"] is None for r in reports for m in r["measurements"]):
        outcome.judged, outcome.said = "refused", "taken for a model file: its training was not run"
        return outcome
    parts = [r["coverage"] for r in reports if r["coverage"]["in_part"]]
    outcome.judged = "in part" if parts else "in full"
    outcome.said = "; ".join(reason for part in parts for reason in part["reasons"])
    if crashed := [f"{rule['name']}: {rule['reason']}" for r in reports for rule in r["rules"] if rule["status"] == "crashed"]:
        outcome.judged, outcome.said = "crashed", "; ".join(crashed)
    own = [r["measurements"][0]["seconds"].get(SCRIPT_PHASE) for r in reports]
    outcome.beyond = outcome.seconds - own[0] - torch_seconds(venv) if own[0] is not None else None
    outcome.findings = [_finding(case, variant, f) for r in reports for f in r["findings"]]
    outcome.named = named(case, [f for r in reports for f in r["findings"]]) if variant == "faulty" else ""
    return outcome


def _finding(case: Case, variant: str, finding: dict[str, Any]) -> tuple[str, str, int | None, str]:
    location = finding["location"]
    return finding["severity"], finding["code"], location and case.line(variant, location), finding["message"]


def named(case: Case, findings: Sequence[dict[str, Any]]) -> str:
    """Whether an error or a warning names the fault, and whether it does so at its line."""
    right = [f for f in findings if f["severity"] != "info" and f["code"] in case.codes]
    places = [f["location"] for f in right if f["location"] and f["location"]["path"].endswith(case.file)]
    spans = [(case.line("faulty", place), case.line("faulty", place, end=True)) for place in places]
    if any(first <= line <= last for first, last in spans for line in case.lines):
        return "line"
    return "cause" if right else ""


@dataclass
class Ending:
    """What a variant printed when it was run to its end."""

    name: str
    variant: str
    value: float | None
    good: bool
    seconds: float
    said: str

    @property
    def expected(self) -> bool:
        return self.good == (self.variant == "healthy")

    def line(self) -> str:
        word = "ok" if self.expected else "NOT AS EXPECTED"
        said = "" if self.expected else f"  {self.said}"
        return f"{self.name:28s} {self.variant:8s} {self.value!s:12s} {self.seconds:6.1f} s  {word}{said}"


def train(case: Case, variant: str, venv: Path) -> Ending:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case.write(variant, folder)
        code, stdout, stderr, seconds = run(case.plain_command(str(venv / "bin" / "python")), folder, venv, RUN_LIMIT)
    value = case.bound.value(stdout + stderr)
    good = code == 0 and case.bound.met(value)
    return Ending(case.name, variant, value, good, seconds, f"wanted {case.bound}; exit {code}; {' '.join(stderr.split())[-200:]}")


def for_all(do: Callable[[Case, str, Path], T], chosen: Sequence[Case], variants: Sequence[str], args: argparse.Namespace) -> list[T]:
    """In the order of the scripts; each line is printed when it is known."""

    def one(job: tuple[Case, str]) -> T:
        result = do(*job, args.venv)
        print(result.line(), flush=True)
        if args.verbose and isinstance(result, Outcome):
            for severity, code, line, message in result.findings:
                print(f"    {severity} {code} line {line}: {message}", flush=True)
        return result

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(one, [(case, variant) for case in chosen for variant in variants]))


def between_markers(page: str, text: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"the page has no {BEGIN.strip()} ... {END.strip()}")
    return f"{before}{BEGIN}{text}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="the environment with the libraries; made if it is not there")
    parser.add_argument("--only", default="*", metavar="GLOB", help="names of scripts; several with commas")
    parser.add_argument("--variant", choices=VARIANTS, help="only the healthy or only the faulty ones")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="run the scripts to their end, without a scan")
    parser.add_argument("--json", type=Path, help="write the outcomes")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into a page, between its markers")
    parser.add_argument("-v", "--verbose", action="store_true", help="print all findings")
    args = parser.parse_args()
    args.venv = args.venv.resolve()
    make_environment(args.venv)
    chosen = [c for c in scripts_case.cases() if any(fnmatch(c.name, glob) for glob in args.only.split(","))]
    variants = [args.variant] if args.variant else VARIANTS
    if args.check:
        endings = for_all(train, chosen, variants, args)
        return 0 if all(e.expected for e in endings) else 1
    outcomes = for_all(scan, chosen, variants, args)
    if args.json:
        args.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    text = table(chosen, outcomes)
    print(text)
    if args.write:
        args.write.write_text(between_markers(args.write.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
