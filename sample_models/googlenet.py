"""GoogLeNet (Szegedy et al., 2014) with batch normalisation and both auxiliary heads, an eighth as wide, for images of 64x64."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, SIZE, BATCH = 10, 64, 24

generator = torch.Generator().manual_seed(0)
patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)  # a coarse pattern for each class


def get_batch(size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, SIZE, SIZE], a noisy pattern each, and their classes [N]."""
    labels = torch.randint(CLASSES, (size,))
    images = F.interpolate(patterns[labels], size=SIZE, mode="bilinear")
    return images + 0.5 * torch.randn_like(images), labels


# Inception modules: 1x1, 3x3 reduction, 3x3, 5x5 reduction, 5x5, pool projection; the paper's numbers.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = ("4a", "5a")
AUXILIARY_AFTER = ("4a", "4d")


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Inception(nn.Module):
    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.branches = nn.ModuleList(
            [
                conv(inputs, one, 1),
                nn.Sequential(conv(inputs, reduce3, 1), conv(reduce3, three, 3)),
                nn.Sequential(conv(inputs, reduce5, 1), conv(reduce5, five, 5)),
                nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(inputs, pool, 1)),
            ]
        )
        self.outputs = one + three + five + pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, H, W] -> [N, outputs, H, W]
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class AuxiliaryHead(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = conv(inputs, width, 1)
        self.hidden = nn.Linear(4 * width, 8 * width)
        self.head = nn.Linear(8 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, H, W] -> [N, CLASSES]
        x = self.conv(F.adaptive_avg_pool2d(x, 2)).flatten(1)
        return self.head(F.dropout(F.relu(self.hidden(x)), 0.2, self.training))


class GoogLeNet(nn.Module):
    def __init__(self, divisor: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 64 // divisor, 7, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
            conv(64 // divisor, 64 // divisor, 1),
            conv(64 // divisor, 192 // divisor, 3),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.inceptions = nn.ModuleDict()
        self.auxiliaries = nn.ModuleDict()
        channels = 192 // divisor
        for name, widths in INCEPTIONS.items():
            inception = Inception(channels, tuple(width // divisor for width in widths))
            self.inceptions[name] = inception
            channels = inception.outputs
            if name in AUXILIARY_AFTER:
                self.auxiliaries[name] = AuxiliaryHead(channels, 128 // divisor)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # [N, 3, 64, 64] -> [N, CLASSES], main head first
        x = self.stem(x)
        auxiliary = []
        for name, inception in self.inceptions.items():
            x = inception(self.pool(x) if name in POOL_BEFORE else x)
            if name in self.auxiliaries and self.training:
                auxiliary.append(self.auxiliaries[name](x))
        return self.head(self.dropout(x.mean(dim=(2, 3)))), *auxiliary


def build_model() -> nn.Module:
    return GoogLeNet()


def loss_fn(outputs: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
    main, *auxiliary = (F.cross_entropy(output, target) for output in outputs)
    return main + 0.3 * sum(auxiliary)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
