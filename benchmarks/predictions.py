"""How far can the verdict be trusted? Scans random workloads, then really trains them, and compares.

    python benchmarks/predictions.py --seeds 1000:1200

A workload *fails* when 300 steps leave its training loss at 0.9 of the best constant prediction's or above (or not
finite), *trains* when it falls below 0.5, and is *between* otherwise. Reported are the share of failing workloads with an
`error` (recall), the share of training ones with an `error` (false errors), and the same for warnings.
Seeds below 1000 are for tuning, from 1000 on for reporting.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from pathlib import Path

import torch
from workloads import draw, train

import gradcheck

FAILS, TRAINS = 0.9, 0.5


def label(relative: float) -> str:
    return "fails" if not relative < FAILS else "trains" if relative < TRAINS else "between"


def judge(seed: int, steps: int) -> dict[str, object]:
    case = draw(seed)
    started = time.perf_counter()
    report = gradcheck.scan(case.model, case.batches, loss=case.loss, optimizer=case.optimizer)
    seconds = time.perf_counter() - started
    relative = train(copy.copy(case), steps)
    found = [(f.code, f.severity, f.cause) for f in report.findings]
    return {"seed": seed, "words": case.words, "relative": relative, "label": label(relative), "seconds": seconds, "findings": found}


def summary(rows: list[dict[str, object]]) -> str:
    lines = []
    for name in ("fails", "between", "trains"):
        mine = [r for r in rows if r["label"] == name]
        if not mine:
            continue
        severities = [{s for _, s, _ in r["findings"]} for r in mine]  # type: ignore[attr-defined]
        errors = sum("error" in s for s in severities)
        warnings = sum("warning" in s and "error" not in s for s in severities)
        n = len(mine)
        shares = [("error", errors), ("warning only", warnings), ("silent", n - errors - warnings)]
        lines.append(f"{name:8} {n:4}   " + "   ".join(f"{what} {count / n:6.1%} ({count})" for what, count in shares))
    codes: dict[str, Counter[str]] = {}
    for r in rows:
        for code, severity, _ in r["findings"]:  # type: ignore[attr-defined]
            codes.setdefault(f"{code} {severity}", Counter())[str(r["label"])] += 1
    lines += [f"  {key:18} {dict(counts)}" for key, counts in sorted(codes.items())]
    seconds = sorted(float(r["seconds"]) for r in rows)  # type: ignore[arg-type]
    lines.append(f"seconds per scan: median {seconds[len(seconds) // 2]:.1f}, most {seconds[-1]:.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:100", help="FIRST:END")
    parser.add_argument("--steps", type=int, default=300, help="training steps behind a label")
    parser.add_argument("--json", type=Path, help="write one line per workload here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first, end = map(int, arguments.seeds.split(":"))
    rows = []
    for seed in range(first, end):
        row = judge(seed, arguments.steps)
        rows.append(row)
        errors = [c for c, s, _ in row["findings"] if s == "error"]  # type: ignore[attr-defined]
        others = [c for c, s, _ in row["findings"] if s == "warning"]  # type: ignore[attr-defined]
        print(f"{seed:5} {row['label']:8} {row['relative']:9.3g} {row['seconds']:5.1f} s  {row['words']}  E{errors} W{others}", flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
