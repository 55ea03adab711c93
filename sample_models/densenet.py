"""DenseNet-BC (Huang et al., 2016) of 40 layers with growth rate 8, for images of 24x24."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, SIZE, BATCH = 10, 24, 24

generator = torch.Generator().manual_seed(0)
patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)  # a coarse pattern for each class


def get_batch(size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, SIZE, SIZE], a noisy pattern each, and their classes [N]."""
    labels = torch.randint(CLASSES, (size,))
    images = F.interpolate(patterns[labels], size=SIZE, mode="bilinear")
    return images + 0.5 * torch.randn_like(images), labels


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, H, W] -> [N, C + growth, H, W]
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return torch.cat([x, y], dim=1)


def transition(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.AvgPool2d(2))


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8, layers: tuple[int, ...] = (6, 6, 6)) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for block, count in enumerate(layers):
            if block:
                blocks.append(transition(channels, channels // 2))
                channels //= 2
            for _ in range(count):
                blocks.append(DenseLayer(channels, growth))
                channels += growth
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 3, 24, 24] -> [N, CLASSES]
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


def build_model() -> nn.Module:
    return DenseNet()


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
