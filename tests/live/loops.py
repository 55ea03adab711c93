"""Training loops to be watched: each is a function that trains from a fixed seed and returns all that it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.types.report import Report

Watch = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Any]]


def unwatched(model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
    return nullcontext()


class Kept:
    """Makes boards, and keeps them. `found`: with `looks`, every finding at error or warning level that was shown on the way."""

    def __init__(self, looks: bool = False, **options: Any) -> None:
        self.options = options | ({"on_measured": self.look} if looks else {})
        self.boards: list[gradcheck.Board] = []
        self.found: set[tuple[str, str]] = set()

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> gradcheck.Board:
        self.boards.append(gradcheck.watch(model, optimizer, **self.options))
        return self.boards[-1]

    def look(self, board: gradcheck.Board) -> None:
        self.found |= {(f.severity, f.code) for f in board.findings if f.severity != "info"}

    @property
    def board(self) -> gradcheck.Board:
        assert self.boards[0].failure is None, repr(self.boards[0].failure)
        return self.boards[0]


def remains(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, buffers, gradients, the optimizer's state and torch's random state."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    kept = [*model.parameters(), *model.buffers(), *gradients, *state]
    return [*(t.detach().clone() for t in kept), torch.get_rng_state()]


def blobs(seed: int = 1, samples: int = 1024, features: int = 20, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=generator)
    return x, (x @ torch.randn(features, classes, generator=generator)).argmax(1)


def batches(steps: int, size: int = 64, seed: int = 2) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    x, y = blobs()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (size,), generator=generator)
        yield x[chosen], y[chosen]


def mlp(width: int = 64, features: int = 20, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def classify(watch: Watch = unwatched, steps: int = 40) -> list[torch.Tensor]:
    """Dropout, batch norm, Adam, clipping, a schedule, and evaluation passes in between."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with watch(model, optimizer):
        for i, (x, y) in enumerate(batches(steps)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if i % 10 == 0:
                model.eval()
                with torch.no_grad():
                    model(x[:7])
                model(x[:5]).sum()  # with gradient, and no backward pass
                model.train()
    return remains(model, optimizer)


def accumulate(watch: Watch = unwatched, steps: int = 20) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with watch(model, optimizer):
        for i, (x, y) in enumerate(batches(4 * steps, 16)):
            (F.cross_entropy(model(x), y) / 4).backward()
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    return remains(model, optimizer)


def scaled(watch: Watch = unwatched, steps: int = 20, factor: float = 2.0**10, clip: bool = False) -> list[torch.Tensor]:
    """A GradScaler, one step of which is skipped for an infinite gradient."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=factor, growth_interval=10**6)
    with watch(model, optimizer):
        for i, (x, y) in enumerate(batches(steps)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) * (float("inf") if i == 2 else 1.0)
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update(factor)
    return remains(model, optimizer)


def closures(watch: Watch = unwatched, steps: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, y = blobs()
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with watch(model, optimizer):
        for _ in range(steps):
            optimizer.step(closure)
    return remains(model, optimizer)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.body, self.head = nn.Linear(20, 32), nn.Sequential(nn.Linear(32, 32), nn.ReLU()), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.stem(x))
        h = torch.utils.checkpoint.checkpoint(self.body, h, use_reentrant=self.reentrant)
        return self.head(h)


def checkpointed(watch: Watch = unwatched, steps: int = 12, reentrant: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = Checkpointed(reentrant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer):
        for x, y in batches(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return remains(model, optimizer)


def adversaries(watch: Watch = unwatched, steps: int = 300, critic: int = 0) -> list[torch.Tensor]:
    """A generator (watched) and a discriminator on a ring of points. `critic`: both are watched, and it takes so many steps for one."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
    discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    first = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    second = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    one, zero = torch.ones(64, 1), torch.zeros(64, 1)
    both = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    with watch(both, second) if critic else watch(generator, first):
        for step in range(steps):
            angle = torch.rand(64) * 6.283
            real = torch.stack([angle.cos(), angle.sin()], 1)
            fake = generator(torch.randn(64, 4))
            second.zero_grad()
            loss = F.binary_cross_entropy_with_logits(discriminator(real), one)
            (loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zero)).backward()
            second.step()
            if critic and step % critic != critic - 1:
                continue
            first.zero_grad()
            F.binary_cross_entropy_with_logits(discriminator(fake), one).backward()
            first.step()
    return remains(generator, first)


def passed(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss


def found(report: Report) -> set[str]:
    assert not [s for s in report.rules if s.status == "crashed"]
    return {f.code for f in report.findings if f.code.startswith("LOOP") or f.code == "GRAPH006"}
