"""What measuring costs: CPU time and memory of gradcheck beside bare training steps and beside plain hooks.

    python -m benchmarks.overhead [--model resnet18 --model gpt6 --model mlp50] [--repeats 15] [--json]
    python -m benchmarks.overhead --watch [--model resnet18] [--repeats 20] [--every 50]

Every repeat runs all arms once, in random order, on the same model: two bare steps (their ratio is the control), one step
with all statistics, one with plain `.item()` hooks. Ratios are of CPU time, one thread, and the median over repeats;
wall-clock ratios are given beside them, and say little on a busy machine. With `--watch`: a watched run, judged as for
`stop_on`, beside bare ones; see benchmarks/watching.py.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import watching
from gradcheck.measure import session as measuring
from gradcheck.workload.workload import Workload
from sample_models.gpt import GPT, LENGTH, VOCABULARY
from sample_models.resnet import ResNet

STEPS = 100  # of a whole scan
MEMORY_STEPS = 12  # enough for every kind of measured step
LIMITS = {"resnet18": 2.0, "gpt6": 1.5, "mlp50": 2.5, "small": 2.5}
SCAN_LIMIT, MEMORY_LIMIT = 1.5, 1.1
WATCH_LIMITS = {"resnet18": 1.02, "gpt6": 1.03, "mlp50": 1.03, "small": 1.03}


def keep_memory() -> None:
    """Makes glibc keep what is freed: otherwise chance decides which arm pays for taking memory back from the system."""
    trim_threshold, mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(trim_threshold, 1 << 30)
    libc.mallopt(mmap_threshold, 32 << 20)


def resnet18() -> Workload:
    """11 million parameters, 8 images of 64x64."""
    model = ResNet(width=64)
    batches = [(torch.randn(8, 3, 64, 64), torch.randint(10, (8,))) for _ in range(4)]
    return _workload("resnet18", model, batches, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))


def gpt6() -> Workload:
    """Six blocks of width 256, 16 sequences of 32 tokens."""
    model = GPT(width=256, heads=8, depth=6)
    batches = [(torch.randint(VOCABULARY, (16, LENGTH)), torch.randint(VOCABULARY, (16, LENGTH))) for _ in range(4)]
    return _workload("gpt6", model, batches, torch.optim.AdamW(model.parameters(), lr=1e-3))


def mlp50() -> Workload:
    """Fifty layers of width 256 with ReLU between, 64 samples: bound by the number of operations, not by their size."""
    layers: list[nn.Module] = []
    for _ in range(49):
        layers += [nn.Linear(256, 256), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    batches = [(torch.randn(64, 256), torch.randint(10, (64,))) for _ in range(4)]
    return _workload("mlp50", model, batches, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))


def small() -> Workload:
    """Seven linear layers of width 128 with ReLU between, 256 samples, AdamW: a step takes a few milliseconds."""
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(128, 128), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    batches = [(torch.randn(256, 128), torch.randint(10, (256,))) for _ in range(4)]
    return _workload("small", model, batches, torch.optim.AdamW(model.parameters(), lr=1e-3))


def _workload(name: str, model: nn.Module, batches: list[Any], optimizer: torch.optim.Optimizer) -> Workload:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        output = model(batch[0])
        return F.cross_entropy(output.flatten(0, -2), batch[1].flatten())

    return Workload(name, model, batches, step, optimizer)


MODELS: dict[str, Callable[[], Workload]] = {"resnet18": resnet18, "gpt6": gpt6, "mlp50": mlp50, "small": small}


def bare_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[..., torch.Tensor], batch: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    step(model, batch).backward()
    optimizer.step()


@contextmanager
def plain_hooks(model: nn.Module) -> Iterator[None]:
    """What one would write first: mean, std, largest, zeros and a histogram of each output and its gradient, `.item()` for each."""

    def look(x: torch.Tensor) -> None:
        y = x.detach().float()
        _ = y.mean().item(), y.std().item(), y.abs().max().item(), (y == 0).float().mean().item(), torch.histc(y, 64).tolist()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        look(output)
        output.register_hook(look)

    handles = [m.register_forward_hook(hook) for m in model.modules() if not list(m.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[..., torch.Tensor], batch: Any) -> None:
    """A step with plain hooks, and the norm of each parameter and of its gradient."""
    optimizer.zero_grad(set_to_none=True)
    with plain_hooks(model):
        step(model, batch).backward()
    for p in model.parameters():
        _ = p.grad.norm().item() if p.grad is not None else 0.0, p.detach().norm().item()
    optimizer.step()


def one_step(name: str, repeats: int) -> dict[str, Any]:
    """Times of each arm, and their ratios to a bare step of the same repeat."""
    torch.manual_seed(0)
    workload = MODELS[name]()
    session = measuring.Session(workload, measuring.MeasurePlan(), lambda phase, fraction: None)
    batch = workload.batches[0]
    session.observe(0, batch)
    trained = session.copy.model, session.copy.optimizer, session.copy.training_step, batch
    arms = {
        "bare": lambda: bare_step(*trained),
        "control": lambda: bare_step(*trained),
        "measured": lambda: session.observe(3, batch),  # as all steps but the first
        "plain": lambda: plain_step(*trained),
    }
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    order = list(arms)
    for repeat in range(repeats + 2):
        random.shuffle(order)
        for arm in order:
            taken = _timed(arms[arm])
            if repeat >= 2:  # the first rounds warm up
                times[arm].append(taken)
    result: dict[str, Any] = {"bare_ms": 1000 * statistics.median(t[0] for t in times["bare"])}
    for arm in ("control", "measured", "plain"):
        cpu, wall = (statistics.median(a[i] / b[i] for a, b in zip(times[arm], times["bare"], strict=True)) for i in (0, 1))
        result[arm] = {"cpu": cpu, "wall": wall, "least_cpu": min(t[0] for t in times[arm]) / min(t[0] for t in times["bare"])}
    return result


def _timed(function: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall-clock seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def whole_scan(name: str) -> dict[str, Any]:
    """A scan against STEPS bare steps ("planned"), half of them before and half after it, and against as many as all its trainings took:
    more than STEPS where the model does not learn in these."""
    torch.manual_seed(0)
    workload, other = MODELS[name](), MODELS[name]()
    half = lambda: [bare_step(other.model, other.optimizer, other.training_step, other.batches[i % 4]) for i in range(STEPS // 2)]  # noqa: E731
    half()
    bare = [_timed(half)]
    found: list[Any] = []
    scan = _timed(lambda: found.append(measuring.measure(workload, measuring.MeasurePlan(steps=STEPS, seconds=3600))))
    bare.append(_timed(half))
    steps, runs = found[0].steps, found[0].experiments
    taken = steps + sum(len(run.losses) for run in runs)
    planned, wall = (scan[i] / sum(b[i] for b in bare) for i in (0, 1))
    cpu, wall = (x * STEPS / taken for x in (planned, wall))
    return {"cpu": cpu, "wall": wall, "planned": planned, "steps": taken, "experiments": len(runs)}


def peak_memory(name: str) -> dict[str, Any]:
    """Largest resident set of a process that scans, and of one that trains beside a copy of the model; MiB."""
    sizes = {arm: _child(name, arm) for arm in ("idle", "bare", "scan")}
    above = {arm: sizes[arm] - sizes["idle"] for arm in ("bare", "scan")}
    return {
        "ratio": sizes["scan"] / sizes["bare"],
        "ratio_without_start": above["scan"] / above["bare"],
        **{f"{k}_mib": v for k, v in sizes.items()},
    }


def _child(name: str, arm: str) -> float:
    command = [sys.executable, "-m", "benchmarks.overhead", "--model", name, "--memory", arm]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_arm(name: str, arm: str) -> float:
    """Runs one arm in this process. Returns its largest resident set, MiB."""
    torch.manual_seed(0)
    if arm != "idle":
        workload = MODELS[name]()
        if arm == "scan":
            plan = measuring.MeasurePlan(steps=MEMORY_STEPS, seconds=3600, needs=("signals", "parameters", "units", "similarity"))
            measuring.measure(workload, plan)
        else:
            kept = copy.deepcopy(workload.model)
            for i in range(MEMORY_STEPS):
                bare_step(workload.model, workload.optimizer, workload.training_step, workload.batches[i % 4])
            del kept
    return peak_resident()


def peak_resident() -> float:
    """Largest resident set of this process, MiB. Linux's ru_maxrss starts at that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _report(name: str, step: dict[str, Any], scan: dict[str, Any], memory: dict[str, Any]) -> str:
    row = lambda what, value, limit: f"  {what:<34}{value:6.2f}x" + (f"   limit {limit:.1f}x" if limit else "")  # noqa: E731
    lines = [f"{name}: a bare step takes {step['bare_ms']:.1f} ms of CPU time"]
    lines += [row("bare again (control)", step["control"]["cpu"], None), row("all statistics", step["measured"]["cpu"], LIMITS[name])]
    lines += [row("  its least time", step["measured"]["least_cpu"], None), row("  wall clock", step["measured"]["wall"], None)]
    lines += [row("plain .item() hooks", step["plain"]["cpu"], None)]
    lines += [row(f"scan of {scan['steps']} steps", scan["cpu"], SCAN_LIMIT), row("  wall clock", scan["wall"], None)]
    lines += [row(f"  beside {STEPS} bare steps", scan["planned"], None)]
    lines += [row("peak memory", memory["ratio"], MEMORY_LIMIT), row("  without torch itself", memory["ratio_without_start"], None)]
    return "\n".join(lines)


def watch(name: str, repeats: int, every: int | None) -> dict[str, Any]:
    """A run that is judged as for `stop_on`, at the default cadence or every so many steps."""
    import gradcheck

    clock = watching.own_clock()
    torch.manual_seed(0)
    workload = MODELS[name]()

    def train(count: int) -> None:
        for i in range(count):
            bare_step(workload.model, workload.optimizer, workload.training_step, workload.batches[i % 4])

    board = gradcheck.watch(workload.model, workload.optimizer, every=every, stop_on="error")
    return watching.measure(train, board, repeats, clock)


def _watch_report(name: str, found: dict[str, Any]) -> str:
    row = lambda what, r: f"  {what:<24}{r['all']:6.3f}x all blocks {r['median']:6.3f}x median block"  # noqa: E731
    return "\n".join(
        [
            f"{name}: a bare step takes {found['step_ms']:.2f} ms of CPU time; {found['measured']} of {found['steps']} steps measured",
            row("bare again (control)", found["control"]),
            row("watched", found["watched"]) + f"   limit {WATCH_LIMITS[name]:.2f}x",
            f"  {'once, at the start':<24}{found['start']:6.3f} s",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(MODELS), help="may be repeated; default all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step-only", action="store_true", help="skip the whole scan and the memory")
    parser.add_argument("--watch", action="store_true", help="what watching a loop costs")
    parser.add_argument("--every", type=int, help="with --watch, in place of the share that is the default")
    parser.add_argument("--memory", choices=("idle", "bare", "scan"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.model or list(MODELS)
    if options.memory:
        print(memory_arm(names[0], options.memory))
        return
    keep_memory()
    results = {}
    for name in names:
        if options.watch:
            print(_watch_report(name, watch(name, options.repeats, options.every)), flush=True)
            continue
        step = one_step(name, options.repeats)
        if options.step_only:
            print(name, json.dumps(step))
            continue
        results[name] = {"step": step, "scan": whole_scan(name), "memory": peak_memory(name)}
        if not options.json:
            print(_report(name, **results[name]), flush=True)
    if options.json and results:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
