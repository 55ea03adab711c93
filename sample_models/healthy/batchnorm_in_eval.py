"""The healthy twin of faulty/batchnorm_in_eval.py: the batch normalisations follow the mode of the model."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
inputs = means[labels] + torch.randn(512, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU())
        self.linears = nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(16)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(64) for _ in range(16)])
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            norm.train(self.training)
            x = torch.relu(norm(linear(x)))
        return self.head(x)


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)
