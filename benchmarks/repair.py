"""Does `fix` make failing workloads train, and leave healthy ones alone? Draws random workloads, treats them, really trains them.

    python benchmarks/repair.py --seeds 4000:4060 --jobs 2
    python benchmarks/repair.py --samples

Workloads and labels are those of predictions.py: a workload *fails* when 300 steps leave its training loss at 0.9 of the best constant
prediction's or above, and *trains* below 0.5. Each failing one is treated by `fix` with safe remedies, by `fix` with unsafe ones, and
by as many random remedies of the same vocabulary with their default settings; then it is trained for 300 steps in an order of samples
that no treatment has seen. Seeds below 1000 are for tuning. `--samples` treats the faulty samples instead, and asks a scan what is left.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from predictions import FAILS, TRAINS, label, share
from workloads import Case, Task, draw, train

import gradcheck
from gradcheck.config.settings import Settings
from gradcheck.loading.objects import from_objects
from gradcheck.loading.spec import TargetSpec
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.repair.fixed import Fixed
from gradcheck.repair.lab import RepairLab
from gradcheck.repair.options import RepairOptions, options_of
from gradcheck.repair.rescan import severities
from gradcheck.repair.story import fix_target
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

SAMPLES = Path(__file__).resolve().parents[1] / "sample_models" / "faulty"
HELD_OUT = 7919  # added to a seed: the order of samples after treatment
HARM = 0.05  # of chance: a loss that is this much higher after treatment was made worse


@dataclass(frozen=True)
class Row:
    """One workload: final training losses in units of the best constant prediction's, untreated and after each treatment."""

    seed: int
    words: str
    untreated: float
    safe: float | None = None
    unsafe: float | None = None
    random: float | None = None
    kept_safe: tuple[str, ...] = ()
    kept_unsafe: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    seconds: float = 0.0  # of the fix with unsafe remedies

    @property
    def label(self) -> str:
        return label(self.untreated)

    def line(self) -> str:
        values = "  ".join(f"{name} {'-' if v is None else format(v, '.3g')}" for name, v in self.treated().items())
        kept = f"{' '.join(self.kept_safe) or '-'} | {' '.join(self.kept_unsafe) or '-'}"
        return f"{self.seed:5} {self.label:8} {self.untreated:8.3g}  {values}  {self.seconds:4.0f} s  {self.words}  [{kept}]"

    def treated(self) -> dict[str, float | None]:
        return {"safe": self.safe, "unsafe": self.unsafe, "random": self.random}


def judge(seed: int, steps: int, budget: float | None, healthy: bool, cpu_time: bool) -> Row:
    torch.set_num_threads(1)
    if cpu_time:
        time.perf_counter = time.process_time
    case = draw(seed)
    untreated = train(draw(seed), steps, order=seed + HELD_OUT)
    row = Row(seed, case.words, untreated)
    if row.label == "between" or (row.label == "trains") != healthy:
        return row
    safe = None if healthy else treat(case, False, budget)
    started = time.perf_counter()
    unsafe = treat(case, True, budget)
    seconds = time.perf_counter() - started
    count = max(1, len(kept(unsafe)))
    drawn: tuple[str, ...] = ()
    control = None
    if not healthy:
        treated, drawn = at_random(case, count, unsafe.report.measurement)
        control = train_treated(case, treated, steps)
    return Row(
        seed,
        case.words,
        untreated,
        None if safe is None else train_treated(case, safe.copy, steps),
        train_treated(case, unsafe.copy, steps),
        control,
        () if safe is None else kept(safe),
        kept(unsafe),
        drawn,
        seconds,
    )


def treat(case: Case, unsafe: bool, budget: float | None) -> Fixed:
    return gradcheck.fix(case.model, case.batches, loss=case.loss, optimizer=case.optimizer, unsafe=unsafe, budget=budget)


def kept(fixed: Fixed) -> tuple[str, ...]:
    return tuple(o.prescription.treatment for o in fixed.outcomes if o.status == "kept")


def at_random(case: Case, count: int, m: Measurement) -> tuple[TreatedWorkload, tuple[str, ...]]:
    """A treated with so many remedies of the vocabulary, drawn by the seed, at the settings they have when no finding asks for them."""
    rng = random.Random(case.seed)
    workload = from_objects(case.model, case.batches, loss=case.loss, optimizer=case.optimizer)
    lab = RepairLab(workload, CATALOGUE, Settings(), RepairOptions(), lambda what, share: None)
    chosen: tuple[Any, ...] = ()
    names = [name for name, treatment in CATALOGUE.items() if treatment.apply is not None]
    rng.shuffle(names)
    for name in names:
        options = CATALOGUE[name].propose(None, m)
        if not options:
            continue
        try:
            lab.treated((*chosen, options[0]))
        except (Inapplicable, gradcheck.GradcheckError):
            continue
        chosen = (*chosen, options[0])
        if len(chosen) == count:
            break
    return lab.treated(chosen), tuple(p.treatment for p in chosen)


def train_treated(case: Case, treated: TreatedWorkload, steps: int) -> float:
    """As `train` does, with the treated model, optimizer, loss, clipping and batches. In units of chance; infinite if it diverged."""
    fixed = Fixed(treated, None, None, None)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(case.seed + HELD_OUT)
    torch.manual_seed(case.seed)
    step = 0
    while step < steps:
        for batch in case.task.batches(generator):
            x, y = fixed.prepare(batch)
            fixed.optimizer.zero_grad()
            loss = fixed.loss(fixed.model(x), y)
            loss.backward()
            fixed.clip(fixed.model.parameters())
            fixed.optimizer.step()
            step += 1
            if not math.isfinite(loss.item()):
                return math.inf
            if step >= steps:
                break
    return final(case, fixed)


@torch.no_grad()
def final(case: Case, fixed: Fixed) -> float:
    """The user's own loss of what the model predicts, targets and predictions on the user's scale; relative to chance."""
    task, total, count = case.task, 0.0, 0
    squares: list[torch.Tensor] = []
    for batch in case.batches:
        x, y = fixed.prepare(batch)
        output = fixed.model(x)
        if task.classes is None:
            squares.append(torch.stack([((output - y) ** 2).mean(), ((y - _mean(task, fixed)) ** 2).mean()]))
        else:
            total += torch.nn.functional.cross_entropy(output, batch[1]).item()
            count += 1
    if task.classes is None:
        error, variance = torch.stack(squares).mean(0).tolist()
        return error / variance
    from workloads import chance

    return total / count / chance(task)


def _mean(task: Task, fixed: Fixed) -> torch.Tensor:
    return fixed.prepare((task.x, task.y))[1].mean(0)


# ---------------------------------------------------------------------------------- tables


def summary(rows: Sequence[Row]) -> str:
    failing = [r for r in rows if r.label == "fails" and r.unsafe is not None]
    healthy = [r for r in rows if r.label == "trains" and r.unsafe is not None]
    lines = []
    if failing:
        lines += ["| of the failing workloads | no longer fail | train |", "|---|---|---|"]
        for name in ("untreated", "random", "safe", "unsafe"):
            values = [v for r in failing if (v := getattr(r, name)) is not None]
            lines.append(f"| {name} | {_share(values, FAILS)} | {_share(values, TRAINS)} |")
        used = Counter(name for r in failing for name in r.kept_unsafe)
        lines += ["", "Kept (unsafe): " + ", ".join(f"{name} {n}" for name, n in used.most_common())]
    if healthy:
        worse = [r for r in healthy if r.unsafe is not None and not r.unsafe <= r.untreated + HARM]
        touched = sum(bool(r.kept_unsafe) for r in healthy)
        lines += ["", f"Healthy workloads made worse: {share(len(worse), len(healthy))} (treated at all: {touched})"]
    seconds = sorted(r.seconds for r in (*failing, *healthy))
    if seconds:
        lines += ["", f"Seconds per fix: median {seconds[len(seconds) // 2]:.0f}, most {seconds[-1]:.0f}."]
    return "\n".join(lines)


def _share(values: Sequence[float], limit: float) -> str:
    return share(sum(v < limit for v in values), len(values))


# --------------------------------------------------------------------------------- samples


def sample(path: str, unsafe: bool, budget: float | None) -> tuple[str, list[str], list[str], list[str], float]:
    """(name, errors and warnings before, those left on the treated copy, treatments kept, seconds)."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    fixed = fix_target(TargetSpec(path), Settings(), options_of(unsafe, None, 3, budget))
    before, after = severities(fixed.report), severities(fixed.after or fixed.report)
    return Path(path).stem, list(before), list(after), list(kept(fixed)), time.perf_counter() - started


def samples(unsafe: bool, budget: float | None, jobs: int) -> None:
    clean = total = 0
    with ProcessPoolExecutor(jobs) as pool:
        for future in [pool.submit(sample, str(p), unsafe, budget) for p in sorted(SAMPLES.glob("*.py"))]:
            name, before, after, remedies, seconds = future.result()
            if before:
                total, clean = total + 1, clean + (not after)
            print(f"{name:34} {seconds:4.0f} s  {' '.join(before) or '-'} -> {' '.join(after) or '-'}  [{' '.join(remedies)}]", flush=True)
    print(f"Clean after treatment: {share(clean, total)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:60", help="FIRST:END, or numbers with commas between them")
    parser.add_argument("--steps", type=int, default=300, help="training steps behind a label")
    parser.add_argument("--budget", type=float, help="seconds that a fix may take after its scan (default: gradcheck's own)")
    parser.add_argument("--jobs", type=int, default=1, help="workloads at the same time, one thread each")
    parser.add_argument("--healthy", action="store_true", help="treat the workloads that train instead of those that fail")
    parser.add_argument("--samples", action="store_true", help="treat the faulty samples")
    parser.add_argument("--safe", action="store_true", help="with --samples: safe remedies only")
    parser.add_argument("--cpu-time", action="store_true", help="budgets count CPU seconds: for a machine that is busy otherwise")
    parser.add_argument("--json", type=Path, help="append one line per workload to this file")
    arguments = parser.parse_args()
    if arguments.samples:
        samples(not arguments.safe, arguments.budget, arguments.jobs)
        sys.exit()
    first, colon, end = arguments.seeds.partition(":")
    seeds = list(range(int(first), int(end))) if colon else [int(s) for s in arguments.seeds.split(",")]
    rows: list[Row] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        options = (arguments.steps, arguments.budget, arguments.healthy, arguments.cpu_time)
        for future in as_completed([pool.submit(judge, seed, *options) for seed in seeds]):
            rows.append(future.result())
            print(rows[-1].line(), flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(asdict(rows[-1])) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
