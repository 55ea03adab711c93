"""ResNet-18 (He et al., 2015), a quarter as wide by default, for images of 64x64."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, SIZE, BATCH = 10, 64, 32

generator = torch.Generator().manual_seed(0)
patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)  # a coarse pattern for each class


def get_batch(size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, SIZE, SIZE], a noisy pattern each, and their classes [N]."""
    labels = torch.randint(CLASSES, (size,))
    images = F.interpolate(patterns[labels], size=SIZE, mode="bilinear")
    return images + 0.5 * torch.randn_like(images), labels


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, H, W] -> [N, C', H/stride, W/stride]
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.skip(x))


class ResNet(nn.Module):
    """`width` is that of the first stage: 64 in the paper."""

    def __init__(self, width: int = 16, blocks: tuple[int, ...] = (2, 2, 2, 2)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            for index in range(count):
                outputs = width * 2**stage
                stages.append(Block(channels, outputs, stride=2 if stage and index == 0 else 1))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 3, 64, 64] -> [N, CLASSES]
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))


def build_model() -> nn.Module:
    return ResNet()


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
