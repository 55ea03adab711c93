"""How far can the verdict be trusted? Scans random workloads, then really trains them, and compares.

    python benchmarks/predictions.py --seeds 1000:1200 --jobs 2

A workload *trains* when 300 steps bring its training loss below 0.5 of the best constant prediction's, and is *between* when
they leave it below 0.9. One that they leave above (or not finite) is trained ten times as long: it is *slow* when it gets below
0.9 then, and *hopeless* otherwise. Reported are the share of hopeless workloads with an `error` (recall), the shares of
slow and training ones with an `error` (false errors), the same for warnings, and for each rule how often what it said came true.
Seeds below 1000 are for tuning, from 1000 on for reporting. Peers on the same workloads: peers.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

if "--cpu-time" in sys.argv:
    time.perf_counter = time.process_time  # before gradcheck is imported: some of its clocks are default arguments

import torch
from workloads import Case, draw, train

import gradcheck

FAILS, TRAINS = 0.9, 0.5
LABELS = ("hopeless", "slow", "between", "trains")


@dataclass(frozen=True)
class Row:
    """One workload: what became of it, and what a scan had said."""

    seed: int
    words: str
    relative: float  # final training loss in units of the best constant prediction's
    label: str
    seconds: float  # of the scan
    findings: tuple[tuple[str, str, str | None], ...] = ()  # code, severity, code of the cause
    later: float | None = None  # `relative` after a longer training, of one that had failed

    def says(self, severity: str) -> bool:
        return any(s == severity for _, s, _ in self.findings)

    def line(self) -> str:
        codes = {word: [c for c, s, _ in self.findings if s == word] for word in ("error", "warning")}
        said = "  ".join(f"{word}: {' '.join(found)}" for word, found in codes.items() if found)
        later = "" if self.later is None else f" -> {self.later:.3g}"
        return f"{self.seed:5} {self.label:8} {self.relative:9.3g}{later} {self.seconds:5.1f} s  {self.words}  {said or '-'}"


def label(relative: float) -> str:
    return "fails" if not relative < FAILS else "trains" if relative < TRAINS else "between"


def lasting(relative: float, later: float | None) -> str:
    """The label, where what fails is told apart by a longer training."""
    if label(relative) != "fails":
        return label(relative)
    return "slow" if later is not None and later < FAILS else "hopeless"


def fate(case: Case, steps: int, longer: int) -> tuple[float, float | None]:
    """The loss in units of chance after some steps, and, where that fails, after `longer` times as many."""
    relative = train(case, steps)
    if relative < FAILS or longer <= 1 or not math.isfinite(relative):
        return relative, None
    return relative, train(case, steps * (longer - 1), order=case.seed + 2)


def judge(seed: int, steps: int, longer: int, budget: float | None, keep: Path | None) -> Row:
    """Scans the workload of a seed, then trains it."""
    torch.set_num_threads(1)
    case = draw(seed)
    config = {} if budget is None else {"budget": budget}
    started = time.perf_counter()
    report = gradcheck.scan(case.model, case.batches, loss=case.loss, optimizer=case.optimizer, config=config)
    seconds = time.perf_counter() - started
    if keep is not None:
        report.to_json(keep / f"{seed}.json")
    relative, later = fate(copy.copy(case), steps, longer)
    findings = tuple((f.code, f.severity, f.cause) for f in report.findings)
    return Row(seed, case.words, relative, lasting(relative, later), seconds, findings, later)


def interval(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, count / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def share(count: int, n: int) -> str:
    low, high = interval(count, n)
    return f"{count}/{n} = {count / n:.3f} [{low:.3f}, {high:.3f}]" if n else "0/0"


def verdicts(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in LABELS:
        mine = [r for r in rows if r.label == name]
        errors = sum(r.says("error") for r in mine)
        either = sum(r.says("error") or r.says("warning") for r in mine)
        lines.append(f"| {name} | {share(errors, len(mine))} | {share(either, len(mine))} |")
    return ["| workload | with an error | with an error or a warning |", "|---|---|---|", *lines]


def calibration(rows: Sequence[Row]) -> list[str]:
    """By rule and severity: how many workloads that it spoke about failed, were between, trained."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for r in rows:
        for code, severity in {(code, severity) for code, severity, _ in r.findings}:
            counts.setdefault((code, severity), Counter())[r.label] += 1
    lines = []
    for (code, severity), found in sorted(counts.items()):
        total = sum(found.values())
        cells = " | ".join(str(found[name]) for name in LABELS)
        lines.append(f"| {code} | {severity} | {cells} | {found['hopeless'] / total:.2f} |")
    return [f"| rule | severity | {' | '.join(LABELS)} | share that is hopeless |", "|---|---|---|---|---|---|---|", *lines]


def summary(rows: Sequence[Row]) -> str:
    seconds = sorted(r.seconds for r in rows)
    middle, late = seconds[len(seconds) // 2], seconds[len(seconds) * 9 // 10]
    times = f"Seconds per scan: median {middle:.1f}, 90th percentile {late:.1f}, most {seconds[-1]:.1f}."
    return "\n".join([*verdicts(rows), "", *calibration(rows), "", times])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:100", help="FIRST:END")
    parser.add_argument("--steps", type=int, default=300, help="training steps behind a label")
    parser.add_argument("--longer", type=int, default=10, help="times as many steps for what fails, to tell slow from hopeless")
    parser.add_argument("--budget", type=float, help="seconds that a scan may take (default: gradcheck's own)")
    parser.add_argument("--jobs", type=int, default=1, help="workloads at the same time, one thread each")
    parser.add_argument("--cpu-time", action="store_true", help="count budgets in CPU seconds, on a machine that is busy with other work")
    parser.add_argument("--json", type=Path, help="append one line per workload to this file")
    parser.add_argument("--keep", type=Path, help="save the reports into this folder")
    arguments = parser.parse_args()
    first, end = map(int, arguments.seeds.split(":"))
    options = (arguments.steps, arguments.longer, arguments.budget, arguments.keep)
    rows = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        futures = [pool.submit(judge, seed, *options) for seed in range(first, end)]
        for future in futures:
            rows.append(future.result())
            print(rows[-1].line(), flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(asdict(rows[-1])) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
