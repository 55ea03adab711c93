"""VGG-16 (Simonyan and Zisserman, 2014), an eighth as wide, for images of 32x32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, SIZE, BATCH = 10, 32, 32

generator = torch.Generator().manual_seed(0)
patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)  # a coarse pattern for each class


def get_batch(size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, SIZE, SIZE], a noisy pattern each, and their classes [N]."""
    labels = torch.randint(CLASSES, (size,))
    images = F.interpolate(patterns[labels], size=SIZE, mode="bilinear")
    return images + 0.5 * torch.randn_like(images), labels


STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    def __init__(self, divisor: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width // divisor, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width // divisor
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = 1024 // divisor
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Linear(hidden, CLASSES),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier[-1].weight, std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 3, 32, 32] -> [N, CLASSES]
        return self.classifier(self.features(x).flatten(1))


def build_model() -> nn.Module:
    return VGG()


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
