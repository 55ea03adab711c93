"""A loop that forgets the step.

Faulty: gradients are computed and thrown away.
Expected: optimizer-never-steps (LOOP001) error
Cure: call `optimizer.step()`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (1024,))
inputs = means[labels] + torch.randn(1024, 32)
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


class Learner:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.loss = nn.CrossEntropyLoss()

    def fit(self, epochs: int) -> None:
        for _ in range(epochs):
            for x, y in loader:
                self.optimizer.zero_grad()
                self.loss(self.model(x), y).backward()


if __name__ == "__main__":
    Learner(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))).fit(epochs=10)
