"""Faulty training loops, and how each is mended."""

from __future__ import annotations

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(4, 8)
labels = torch.randint(4, (256,))
data = TensorDataset(means[labels] + torch.randn(256, 8), labels)
loader = DataLoader(data, batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
"""

# Name -> (faulty loop, what is written). Lines that are equal in both are not looked at again.
LOOPS = {
    "never cleared, in a function": (
        """
        def train_step(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(4):
            for x, y in loader:
                train_step(x, y)
        """,
        """
        def train_step(x, y):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(4):
            for x, y in loader:
                train_step(x, y)
        """,
    ),
    "never cleared, accumulated": (
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
        """,
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
    ),
    "cleared between backward pass and step": (
        """
        for _ in range(4):
            for x, y in loader:
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.zero_grad()  # too early
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
        """,
    ),
    "cleared with each accumulated pass": (
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                optimizer.zero_grad()
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
        """,
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
    ),
    "the step forgotten, before a clearing": (
        """
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.zero_grad()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
        """,
    ),
    "clipping before the backward pass": (
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                norm = nn.utils.clip_grad_norm_(
                    model.parameters(),
                    5.0,
                )
                loss.backward()
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(
                    model.parameters(),
                    5.0,
                )
                optimizer.step()
        """,
    ),
    "clipping of a generator that is used up": (
        """
        weights = model.parameters()
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(weights, 5.0)
                optimizer.step()
        """,
        """
        weights = model.parameters()
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
        """,
    ),
    "a scaled loss, and a bare step": (
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                optimizer.step()
        """,
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                scaler.step(optimizer)
                scaler.update()
        """,
    ),
    "no update of the scaler": (
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                scaler.step(optimizer)
        """,
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                scaler.step(optimizer)
                scaler.update()
        """,
    ),
    "a sum over accumulated passes, by a name": (
        """
        every = 4
        for _ in range(8):
            for i, (x, y) in enumerate(loader):
                F.cross_entropy(model(x), y).backward()
                if (i + 1) % every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
        """
        every = 4
        for _ in range(8):
            for i, (x, y) in enumerate(loader):
                (F.cross_entropy(model(x), y) / every).backward()
                if (i + 1) % every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
    ),
    "an evaluation in a function of its own": (
        """
        def accuracy(net):
            net.eval()
            with torch.no_grad():
                return sum((net(x).argmax(1) == y).sum().item() for x, y in loader)

        for _ in range(4):
            for i, (x, y) in enumerate(loader):
                if i % 8 == 0:
                    accuracy(model)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
        """
        def accuracy(net):
            net.eval()
            with torch.no_grad():
                return sum((net(x).argmax(1) == y).sum().item() for x, y in loader)

        for _ in range(4):
            for i, (x, y) in enumerate(loader):
                if i % 8 == 0:
                    accuracy(model)
                    model.train()
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
    ),
    "the first batch, taken before the loop": (
        """
        x, y = next(iter(loader))
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        """,
        """
        for _ in range(40):
            x, y = next(iter(loader))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        """,
    ),
    "two illnesses at once": (
        """
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
        """,
        """
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            schedule.step()
        """,
    ),
    "a schedule over all batches, stepped by epochs": (
        """
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, epochs=4, steps_per_epoch=len(loader), div_factor=1000)
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            schedule.step()
        """,
        """
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, epochs=4, steps_per_epoch=len(loader), div_factor=1000)
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
        """,
    ),
    "cleared by a method that is named and not called": (
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
    ),
    "never cleared, updated by hand": (
        """
        net = nn.Linear(8, 4)
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(net(x), y).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * p.grad
        """,
        """
        net = nn.Linear(8, 4)
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(net(x), y).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * p.grad
                        p.grad = None
        """,
    ),
    "clipped behind an update by hand": (
        """
        net = nn.Linear(8, 4)
        for _ in range(4):
            for x, y in loader:
                net.zero_grad()
                F.cross_entropy(net(x), y).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * p.grad
                nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        """,
        """
        net = nn.Linear(8, 4)
        for _ in range(4):
            for x, y in loader:
                net.zero_grad()
                F.cross_entropy(net(x), y).backward()
                nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * p.grad
        """,
    ),
    "a loss that is made again": (
        """
        for _ in range(4):
            for x, y in loader:
                loss = torch.tensor(F.cross_entropy(model(x), y).item(), requires_grad=True)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        """,
    ),
}
