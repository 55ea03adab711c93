"""Scans the healthy zoo: no scan may crash, none may report an error, and at most one in twenty a warning.

python benchmarks/zoo.py                        all of it
python benchmarks/zoo.py --only 'hf-*' --json zoo.json
python benchmarks/zoo.py --signal 0             random labels and tokens instead of learnable ones
python benchmarks/zoo.py --bare 100             no scan: plain training, to see that the models are healthy
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's gradcheck, whatever is installed

import torch
import zoo_case
import zoo_dense
import zoo_handwritten
import zoo_transformers
from zoo_case import Builder, Case

ZOO: dict[str, Builder] = zoo_dense.registry() | zoo_handwritten.registry() | zoo_transformers.registry()
DOUBTFUL: dict[str, Builder] = zoo_transformers.doubtful()

MOST_WARNINGS = 0.05  # share of the zoo that may get a warning


@dataclass
class Outcome:
    """What a scan of one model said: codes by severity, or why it crashed."""

    name: str
    seconds: float = 0.0
    error: list[str] = field(default_factory=list)
    warning: list[str] = field(default_factory=list)
    info: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # of errors and warnings
    crashed_rules: list[str] = field(default_factory=list)
    in_part: list[str] = field(default_factory=list)  # how many rules looked, and why the others could not, where that is not the verdict
    crash: str = ""

    def line(self) -> str:
        if self.crash:
            return f"{self.name:34s} {self.seconds:6.1f} s  CRASH {self.crash}"
        groups = [(word, getattr(self, word)) for word in ("error", "warning", "info")]
        groups += [("crashed rules", self.crashed_rules), ("judged in part", self.in_part)]
        said = [f"{word}: {' '.join(codes)}" for word, codes in groups if codes]
        return f"{self.name:34s} {self.seconds:6.1f} s  {'; '.join(said) or 'ok'}"


def build(name: str, seed: int) -> Case:
    torch.manual_seed(seed)
    return (ZOO | DOUBTFUL)[name]()


def scan(name: str, seed: int, steps: int | None) -> Outcome:
    """Scans one member. Whatever it raises is the outcome: the others go on."""
    import gradcheck

    outcome = Outcome(name)
    start = time.perf_counter()
    try:
        case = build(name, seed)
        report = gradcheck.scan(
            case.model, case.batches, loss=case.loss, optimizer=case.optimizer, training_step=case.training_step, steps=steps
        )
        for finding in report.findings:
            codes: list[str] = getattr(outcome, finding.severity)
            codes.append(finding.code)
            if finding.severity != "info":
                outcome.messages.append(f"{finding.code} {finding.message}")
        part = report.coverage
        outcome.in_part = [f"{part.looked} of {part.applicable};", "; ".join(part.reasons)] if part.in_part else []
        outcome.crashed_rules = [f"{state.code} ({state.reason})" for state in report.rules if state.status == "crashed"]
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome.crash = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} [{frame.filename}:{frame.lineno}]"
    outcome.seconds = time.perf_counter() - start
    return outcome


def train(name: str, seed: int, steps: int) -> str:
    """Plain training; mean loss over the first and over the last visit of each batch."""
    case = build(name, seed)
    optimizer = case.optimizer or torch.optim.AdamW(case.model.parameters())
    losses: list[float] = []
    start = time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad()
        loss = case.step(case.batches[step % len(case.batches)])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    milliseconds = 1e3 * (time.perf_counter() - start) / steps
    visits = min(len(case.batches), steps)
    return f"{name:34s} {milliseconds:6.0f} ms a step   loss {mean(losses[:visits]):.4g} -> {mean(losses[-visits:]):.4g}"


def summary(outcomes: Iterable[Outcome]) -> tuple[list[str], bool]:
    """Totals as lines, and whether the zoo is found healthy."""
    done = list(outcomes)
    count = len(done)
    crashed = sum(bool(o.crash or o.crashed_rules) for o in done)
    wrong = sum(bool(o.error) for o in done)
    warned = sum(bool(o.warning) for o in done)
    lines = [
        f"{count} models in {sum(o.seconds for o in done):.0f} s: {crashed} crashed, {wrong} with an error (0 allowed), "
        f"{warned} with a warning ({MOST_WARNINGS * count:.0f} allowed), {sum(bool(o.in_part) for o in done)} judged in part (0 allowed)"
    ]
    for severity in ("error", "warning", "info"):
        codes = Counter(code for o in done for code in set(getattr(o, severity)))
        if codes:
            lines.append(f"  models with {severity}: " + ", ".join(f"{code} {number}" for code, number in codes.most_common()))
    partial = any(o.in_part for o in done)
    return lines, not crashed and not wrong and not partial and warned <= MOST_WARNINGS * count


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="GLOB", help="names to scan; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there")
    parser.add_argument("--signal", type=float, default=1.0, help="how clearly the data can be learnt; 0: not at all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of a scan; its default otherwise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bare", type=int, metavar="STEPS", help="train plainly instead of scanning")
    parser.add_argument("--doubtful", action="store_true", help="the models that are faulty as shipped instead of the healthy ones")
    parser.add_argument("--verbose", action="store_true", help="print the messages of errors and warnings")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    zoo_case.signal = options.signal
    names = [
        name for name in (DOUBTFUL if options.doubtful else ZOO) if not options.only or any(fnmatch(name, glob) for glob in options.only)
    ]
    if not names:
        print(f"no model matches {' '.join(options.only)}", file=sys.stderr)
        return 2
    if options.bare:
        for name in names:
            print(train(name, options.seed, options.bare), flush=True)
        return 0
    outcomes = []
    for name in names:
        outcomes.append(scan(name, options.seed, options.steps))
        print(outcomes[-1].line(), flush=True)
        if options.verbose:
            print("".join(f"    {message}\n" for message in outcomes[-1].messages), end="", flush=True)
    lines, healthy = summary(outcomes)
    print("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
