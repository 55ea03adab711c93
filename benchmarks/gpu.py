"""What only a GPU can show: agreement with the CPU, memory peaks, time of the statistics, of a measured and of a watched step, and whether
watching leaves streams, torch.compile and captured graphs alone.

    python -m benchmarks.gpu [--budget 300]

One script, under six minutes on one GPU; each part is skipped when the seconds are used up, and one that fails says so in its row.
Without a GPU it says so and ends.
Times are the device's own, by events; ratios are medians over repeats, whose arms run in random order.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from benchmarks.overhead import bare_step, gpt6, mlp50, resnet18
from gradcheck.instrument import fused_statistics
from gradcheck.instrument.deferred_statistics import DeferredStatistics
from gradcheck.instrument.tensor_statistics import describe
from gradcheck.measure import session as measuring
from gradcheck.types.layers import TensorStats
from gradcheck.workload.borrowing import Borrowed
from gradcheck.workload.workload import Workload
from sample_models.gpt import GPT, LENGTH, VOCABULARY

LOGITS = 1 << 28  # entries of the largest tensor that is described
REPEATS = 7
ROWS = 64  # sequences in a batch of the large GPTs: with fewer, a step is bound by its launches
DEVICE = "cuda"


def seconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median of the device's time."""
    found = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return statistics.median(found[1:])


def described(x: torch.Tensor) -> TensorStats:
    found: list[TensorStats] = []
    results = DeferredStatistics()
    results.add(x, found.append)
    results.settle()
    return found[0]


def agreement() -> None:
    """Statistics on the device beside those of the CPU, and findings of small models on both."""
    worst = 0.0
    for make in (torch.randn, lambda n: 1e-30 * torch.randn(n), lambda n: 1e4 + torch.randn(n), lambda n: torch.relu(torch.randn(n))):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = make(300_000).to(dtype)
            one, other = described(x.to(DEVICE)), describe(x)
            assert other is not None
            pairs = ((one.std, other.std), (one.norm, other.norm), (one.min, other.min), (one.max, other.max), (one.zeros, other.zeros))
            worst = max([worst, *(abs(a - b) / max(abs(b), 1e-38) for a, b in pairs if a != b)])
    row("statistics: largest difference from the CPU", f"{worst:.1e}")
    for make_workload in (mlp50, gpt6):
        codes = []
        for device in ("cpu", DEVICE):
            torch.manual_seed(0)
            w = placed(make_workload(), device)
            config = {"steps": 20, "budget": 30.0}
            report = gradcheck.scan(w.model, w.batches, training_step=w.training_step, optimizer=w.optimizer, config=config)
            codes.append(sorted(f.code for f in report.findings))
        row(f"findings of {w.name}", "those of the CPU" if codes[0] == codes[1] else f"{codes[1]}, on the CPU {codes[0]}")


def placed(w: Workload, device: str) -> Workload:
    w.model.to(device)
    w.batches = [tuple(t.to(device) for t in batch) for batch in w.batches]
    w.device = torch.device(device)
    return w


def reading() -> None:
    """Time and memory of the statistics of one large tensor, beside one read of it."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(LOGITS, device=DEVICE, dtype=dtype)
        once = seconds(lambda x=x: x.amax())  # type: ignore[misc]
        for name, fused in (("four reads", False), ("fused", True)):
            fused_statistics._failed = not fused
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            taken = seconds(lambda x=x: described(x))  # type: ignore[misc]
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            row(f"{name}, {LOGITS >> 20} M entries, {dtype}", f"{taken / once:.1f} x one read, peak {peak:.0f} MiB")
        if fused_statistics._failed:
            row("fused", "the kernel could not be used")
        fused_statistics._failed = False
        del x


def gpt(width: int, depth: int) -> Workload:
    model = GPT(width=width, heads=width // 64, depth=depth).to(DEVICE, torch.bfloat16)
    batches = [tuple(torch.randint(VOCABULARY, (ROWS, LENGTH), device=DEVICE) for _ in range(2)) for _ in range(2)]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, -2).float(), batch[1].flatten())

    size = sum(p.numel() for p in model.parameters()) / 1e6
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Workload(f"GPT of {size:.0f} M in bfloat16", model, batches, step, optimizer, device=torch.device(DEVICE))


def steps(w: Workload) -> None:
    """A measured and a watched step over a bare one, and the memory that measuring adds."""
    torch.cuda.reset_peak_memory_stats()
    trained = w.model, w.optimizer, w.training_step, w.batches[0]
    for _ in range(3):
        bare_step(*trained)
    peak = torch.cuda.max_memory_allocated()
    bare = on_a_copy(w, peak)
    torch.cuda.empty_cache()
    offloaded(w, peak)
    with gradcheck.watch(w.model, w.optimizer, every=50):
        for _ in range(10):
            bare_step(*trained)
        watched = seconds(lambda: [bare_step(*trained) for _ in range(20)], 3) / 20
    row(f"{w.name}, watched", f"{watched / bare:.3f} x between measured steps")


def on_a_copy(w: Workload, peak: int) -> float:
    """Seconds of a bare step of the copy that a scan trains; `peak`: bytes of the bare training."""
    session = measuring.Session(w, measuring.MeasurePlan(), lambda phase, fraction: None)
    session.observe(0, w.batches[0])
    copied = session.copy.model, session.copy.optimizer, session.copy.training_step, w.batches[0]
    arms = {"bare": lambda: bare_step(*copied), "measured": lambda: session.observe(3, w.batches[0])}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(REPEATS):
        for arm in random.sample(list(arms), len(arms)):
            times[arm].append(seconds(arms[arm], 1))
    bare, measured = (statistics.median(times[arm]) for arm in ("bare", "measured"))
    more = torch.cuda.max_memory_allocated() / peak
    row(w.name, f"bare step {1000 * bare:.1f} ms, measured {measured / bare:.2f} x, peak with the copy {more:.2f} x")
    return bare


def offloaded(w: Workload, peak: int) -> None:
    """The peak with `--offload` over that of the bare training."""
    w.borrowed = Borrowed([w.model], why="to compare", spill=True)
    torch.cuda.reset_peak_memory_stats()
    session = measuring.Session(w, measuring.MeasurePlan(), lambda phase, fraction: None)
    for step in (0, 1, 3):
        session.observe(step, w.batches[0])
    more = torch.cuda.max_memory_allocated() / peak
    w.borrowed.give_back()
    w.borrowed = None
    row(f"{w.name}, --offload", f"peak {more:.2f} x")


def left_alone() -> None:
    """Loops that are watched compute what they do by themselves: on a stream of their own, compiled, replayed from a captured graph."""
    for name, loop in (("a stream of its own", on_a_stream), ("torch.compile", compiled), ("a captured graph", captured)):
        losses = []
        try:
            for watched in (False, True):
                torch.manual_seed(0)
                w = placed(mlp50(), DEVICE)
                with gradcheck.watch(w.model, w.optimizer, every=3) if watched else nullcontext():
                    losses.append(loop(w))
            said = "the same losses" if losses[0] == losses[1] else f"{losses[1]}, alone {losses[0]}"
        except Exception as error:  # the row is what this script is run for
            said = f"{'watched' if losses else 'alone'}: {type(error).__name__}: {error}"
        row(f"watched, {name}", said)


def on_a_stream(w: Workload) -> list[float]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = losses_of(w, w.model)
    torch.cuda.current_stream().wait_stream(stream)
    return found


def compiled(w: Workload) -> list[float]:
    return losses_of(w, torch.compile(w.model))


def captured(w: Workload) -> list[float]:
    """Forward and backward pass as one graph; the optimizer's step stays outside."""
    first, stream = on_a_stream(w), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    w.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph, stream=stream):
        loss = w.training_step(w.model, w.batches[0])
        loss.backward()
    for _ in range(5):
        graph.replay()
        w.optimizer.step()
        first.append(loss.item())
    return first


def losses_of(w: Workload, model: Any) -> list[float]:
    losses = []
    for step in range(8):
        w.optimizer.zero_grad(set_to_none=True)
        loss = w.training_step(model, w.batches[step % len(w.batches)])
        loss.backward()
        w.optimizer.step()
        losses.append(loss.item())
    return losses


def row(what: str, value: str) -> None:
    print(f"  {what:<58}{value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds after which no further part begins")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    started = time.perf_counter()
    large = [lambda: placed(resnet18(), DEVICE), lambda: gpt(1024, 24), lambda: gpt(2048, 24)]
    parts: list[Callable[[], None]] = [agreement, reading, left_alone, *(lambda make=make: steps(make()) for make in large)]  # type: ignore[misc]
    for part in parts:
        if time.perf_counter() - started < options.budget:
            try:
                part()
            except Exception as error:  # the other parts are worth their time all the same
                row(getattr(part, "__name__", "part"), f"failed: {type(error).__name__}: {error}")
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
