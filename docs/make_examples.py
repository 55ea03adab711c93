"""Writes the pages of docs/examples/: scans, a fix, a trial and a watched run. Takes a few minutes. `python docs/make_examples.py`"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "examples"
PAGES = {
    "healthy": ("scan", "sample_models/mlp.py"),
    "vanishing": ("scan", "sample_models/faulty/vanishing_gradient.py"),
    "exploding": ("scan", "sample_models/faulty/exploding_gradient.py"),
    "fix": ("fix", "sample_models/faulty/vanishing_gradient.py", "--unsafe-fixes"),
    "trial": ("trial", "sample_models/trial/overfitting_digits.py", "--remedy", "l2,dropout"),
    "watched": ("watch", "--every", "5", "--no-save", "--quiet"),
}
# A program whose rate is ten thousand times too high for two steps.
SPIKE = """
import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(512, 16)
y = (x[:, :4].sum(1) > 0).long()
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(300):
    for group in optimizer.param_groups:
        group["lr"] = 500.0 if step in (150, 151) else 0.05
    batch = torch.randint(512, (64,))
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01 if step in (150, 151) else 10.0)
    optimizer.step()
"""


def main(names: list[str]) -> None:
    """All pages, or those that are named."""
    for name in names or PAGES:
        command, *words = PAGES[name]
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "train.py"
            program.write_text(SPIKE, encoding="utf-8")
            behind = ["--", sys.executable, program.name] if command == "watch" else []
            out = ["--output", f"html:{FOLDER / name}.html", *(["--exit-zero"] if command != "trial" else [])]
            started = [sys.executable, "-m", "gradcheck", command, *words, *out, *behind]
            done = subprocess.run(started, cwd=folder if behind else ROOT, stdout=subprocess.DEVNULL)
        if not (FOLDER / f"{name}.html").exists():
            raise SystemExit(f"{name}: gradcheck {command} ended with {done.returncode} and wrote no page")
        print(f"docs/examples/{name}.html")


if __name__ == "__main__":
    main(sys.argv[1:])
