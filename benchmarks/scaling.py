"""Does the cost of a scan grow linearly with the layers and with the elements of a model?

    python benchmarks/scaling.py                     10 to 10,000 layers, 10^5 to 10^8 elements
    python benchmarks/scaling.py --huge              10^9 elements, too (20 GB of memory)
    python benchmarks/scaling.py --layers 10 100     only these

Prints seconds of CPU of one training step and of a scan with `--fast`, the difference for each layer or million elements, and the peak of
memory; every size in a process of its own. Ends with 1 where the cost of a layer, or element, grows by more than MOST over the range.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

LAYERS = (10, 100, 1_000, 10_000)
ELEMENTS = (100_000, 1_000_000, 10_000_000, 100_000_000)
HUGE = 1_000_000_000
WIDTH, ROWS = 8, 16
MOST = 3.0  # times that a layer may cost of what one costs in the model of 100


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS)
    parser.add_argument("--elements", type=int, nargs="*", default=ELEMENTS)
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--case", nargs=2)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measured(asked.case[0], int(asked.case[1]))))
        return 0
    elements = [*asked.elements, *([HUGE] if asked.huge else [])]
    print(f"{'model':>22} {'step':>9} {'scan':>9} {'for each':>14} {'peak':>9}")
    return max(_series("layers", asked.layers, 1, "ms"), _series("elements", elements, 1_000_000, "ms"))


def _series(kind: str, sizes: list[int], unit: int, name: str) -> int:
    costs = {}
    for size in sizes:
        out = subprocess.run([sys.executable, __file__, "--case", kind, str(size)], stdout=subprocess.PIPE, text=True, check=True).stdout
        m = json.loads(out.splitlines()[-1])
        costs[size] = m["scan"] / size
        each = f"{1000 * m['scan'] * unit / size:.2f} {name}"
        print(f"{size:>13,} {kind:>8} {m['step']:>7.2f} s {m['scan']:>7.1f} s {each:>14} {m['peak']:>6.2f} GB", flush=True)
    large = [c for size, c in costs.items() if size >= 100 * unit or size == max(sizes)]
    return int(len(large) > 1 and large[-1] > MOST * large[0])


def measured(kind: str, size: int) -> dict[str, float]:
    """Of one model, here."""
    import torch

    import gradcheck

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(0)
    model, x = (chain if kind == "layers" else square)(torch, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = torch.nn.functional.mse_loss
    step = _timed(lambda: loss(model(x), torch.zeros(len(x), model.out)).backward())
    optimizer.zero_grad()
    batches = [(x, torch.randn(len(x), model.out)) for _ in range(4)]
    scan = _timed(lambda: gradcheck.scan(model, batches, loss=loss, optimizer=optimizer, config={"fast": True, "budget": 3600.0}))
    return {"step": step, "scan": scan, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _timed(action) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def chain(torch, layers: int):
    """Residual blocks of one small layer each: of many modules."""

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = WIDTH
            self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(layers))

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.tanh(layer(x)) / layers
            return x

    return Residual(), torch.randn(ROWS, WIDTH)


def square(torch, elements: int):
    """Four wide layers: of many elements."""
    width = int((elements / 4) ** 0.5)
    parts = [m for _ in range(4) for m in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    model = torch.nn.Sequential(*parts[:-1])
    model.out = width
    return model, torch.randn(ROWS, width)


if __name__ == "__main__":
    sys.exit(main())
