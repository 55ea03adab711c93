"""The modules of the hand-written models. Shapes: [N, C, H, W] images, [N, T, C] tokens, [N, C] vectors."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import nn
from torch.nn import functional as F

Layer = Callable[[int], nn.Module]  # of a number of channels


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class SqueezeExcite(nn.Module):
    """Channels weighted by a sigmoid gate that looks at their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Layer, zero_init: bool, gate: Layer | None) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.gate = gate(outputs) if gate else nn.Identity()
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
        if zero_init:
            nn.init.zeros_(self.norm2.weight)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.gate(self.norm2(self.conv2(y)))
        y += self.skip(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    def __init__(self, norm: Layer, zero_init: bool, gate: Layer | None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1, bias=False), norm(32), nn.ReLU(inplace=True))
        widths = ((32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        self.blocks = nn.Sequential(*(ResidualBlock(*width, norm, zero_init, gate) for width in widths))
        self.head = nn.Linear(128, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ReZero(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.alpha * F.relu(self.layer(x))


class Tokens(nn.Module):
    """[N, C, H, W] to [N, HW, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class MeanOverTokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1)


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.over_channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.over_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norm2(x))


class ConvMixer(nn.Sequential):
    def __init__(self, width: int, depth: int) -> None:
        blocks: list[nn.Module] = []
        for _ in range(depth):
            spatial = nn.Sequential(nn.Conv2d(width, width, 5, padding=2, groups=width), nn.GELU(), nn.BatchNorm2d(width))
            blocks += [Residual(spatial), nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]
        stem = (nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width))
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], inputs: int, width: int, classes: int, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.body = kind(inputs, width, num_layers=layers, batch_first=True, bidirectional=bidirectional)  # type: ignore[call-arg]
        self.head = nn.Linear(width * (1 + bidirectional), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.body(x)[0]
        return self.head(output.mean(1) if self.body.bidirectional else output[:, -1])


class PostNormClassifier(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        return self.head(self.encoder(x).mean(1))


class Experts(nn.Module):
    """Two of several experts for each sample; returns logits and a load-balancing loss."""

    def __init__(self, inputs: int, width: int, experts: int, classes: int) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(inputs, width), nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.stem(x))
        probabilities = self.router(x).softmax(-1)
        weights, chosen = probabilities.topk(2, dim=-1)
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            sample, slot = (chosen == index).nonzero(as_tuple=True)
            output = output.index_add(0, sample, weights[sample, slot, None] * expert(x[sample]))
        load = F.one_hot(chosen, len(self.experts)).float().mean((0, 1))
        return self.head(x + output), len(self.experts) * (load * probabilities.mean(0)).sum()


class LowRank(nn.Module):
    """A frozen linear layer and a trained low-rank correction that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class Adapted(nn.Sequential):
    def __init__(self, inputs: int, width: int, rank: int, classes: int) -> None:
        sizes = ((inputs, width), (width, width), (width, width))
        layers: list[nn.Module] = []
        for size in sizes:
            layers += [LowRank(nn.Linear(*size), rank), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, classes))


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip((inputs, *widths), widths, strict=False))
        self.bottom = DoubleConv(4 * width, 8 * width)
        self.lift = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths))
        self.up = nn.ModuleList(DoubleConv(2 * w, w) for w in reversed(widths))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for lift, block in zip(self.lift, self.up, strict=True):
            x = block(torch.cat([skips.pop(), lift(x)], dim=1))
        return self.head(x)


class AutoEncoder(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Conv2d(2 * width, 8, 3, 1, 1),
            nn.ConvTranspose2d(8, 2 * width, 2, 2), nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 2, 2), nn.ReLU(),
            nn.Conv2d(width, 1, 3, 1, 1), nn.Sigmoid(),
        )  # fmt: skip


class VAE(nn.Module):
    def __init__(self, inputs: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, 128), nn.ReLU(), nn.Linear(128, inputs))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp()), mean, log_variance


class TwoTowers(nn.Module):
    """[N, C] and [N, C] to their cosine similarities [N, N], over a learnt temperature."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.right = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.log_scale.exp() * F.normalize(self.left(left), dim=-1) @ F.normalize(self.right(right), dim=-1).T


class Discriminator(nn.Sequential):
    """DCGAN's, for images of 32x32: weights N(0, 0.02), one logit."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(4 * width), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(4 * width, 1, 4, 1, 0, bias=False), nn.Flatten(),
        )  # fmt: skip
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)


class Sine(nn.Module):
    """A linear layer and a sine of frequency 30, initialised as Sitzmann et al. (2020) do."""

    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else sqrt(6 / inputs) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(30 * self.linear(x))


class Siren(nn.Sequential):
    def __init__(self, width: int, layers: int) -> None:
        head = nn.Linear(width, 1)
        nn.init.uniform_(head.weight, -sqrt(6 / width) / 30, sqrt(6 / width) / 30)
        super().__init__(Sine(2, width, True), *(Sine(width, width, False) for _ in range(layers - 1)), head)


class Tasks(nn.Module):
    def __init__(self, inputs: int, width: int, classes: dict[str, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        return {name: head(features) for name, head in self.heads.items()}
