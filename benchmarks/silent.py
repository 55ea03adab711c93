"""Scans random scripts, healthy and with a silent fault: is the fault named by its rule, and does the rule keep silent else?

python benchmarks/silent.py --seeds 100:112                a table by rule
python benchmarks/silent.py --seeds 100:112 --only LOSS007
python benchmarks/silent.py --seeds 100:112 --train         no scan: runs the scripts to their end, and prints what they print last
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's gradcheck, whatever is installed

import silent_programs

FAULTY_SHARE = 2  # one faulty program for so many healthy ones


def scanned(text: str, code: str) -> list[tuple[str, str]]:
    """(code, severity) of every finding, of other rules than `code` without the infos."""
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.config.settings import Settings
    from gradcheck.pipeline import scan_script

    Path("train.py").write_text(text)
    reports = scan_script(ScriptSpec("train.py", quiet=True), Settings())
    return [(f.code, f.severity) for report in reports for f in report.findings if f.severity != "info" or f.code == code]


def trained(text: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(text, "train.py", "exec"), {"__name__": "__main__"})
    return said.getvalue().strip()


def row(code: str, seeds: range, train: bool) -> str:
    told, others, missed, started = Counter[bool](), Counter[str](), [], time.process_time()
    counts = {False: list(seeds), True: list(seeds)[: -(-len(seeds) // FAULTY_SHARE)]}
    for faulty, chosen in counts.items():
        for seed in chosen:
            text = silent_programs.program(code, faulty, seed)
            if train:
                print(code, "faulty " if faulty else "healthy", seed, trained(text), flush=True)
                continue
            try:
                found = scanned(text, code)
            except Exception as error:
                found = [(type(error).__name__, "error")]
                print(f"{code} {faulty} {seed}: {error!r}"[:300], file=sys.stderr)
            named = any(c == code for c, _ in found)
            told[faulty] += named
            if named != faulty:
                missed.append(f"{seed}{'f' if faulty else 'h'}")
            others.update(f"{c} ({s})" for c, s in set(found) if c != code and not faulty)
    seconds = (time.process_time() - started) / sum(map(len, counts.values()))
    beside = ", ".join(f"{c} {n}" for c, n in others.most_common())
    shares = [f"{told[faulty]}/{len(counts[faulty])}" for faulty in (False, True)]
    return "| " + " | ".join((code, *shares, " ".join(missed), beside, f"{seconds:.1f}")) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", default="100:112", help="FIRST:END")
    parser.add_argument("--only", action="append", help="codes; may be repeated")
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    first, end = map(int, options.seeds.split(":"))
    print("| rule | healthy, told of | faulty, named | wrong seeds | others of the healthy | s of CPU |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for code in options.only or silent_programs.KINDS:
            print(row(code, range(first, end), options.train), flush=True)


if __name__ == "__main__":
    main()
