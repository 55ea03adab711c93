"""Healthy models as people write them in plain PyTorch: images, sequences, several inputs or losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from zoo_case import BATCHES, Builder, Case, adamw, cross_entropy, documents, images, labels, patterned, sequences, sgd, vectors
from zoo_pieces import (
    VAE,
    AutoEncoder,
    ConvMixer,
    ConvNeXtBlock,
    Discriminator,
    Experts,
    MeanOverTokens,
    MixerBlock,
    PostNormClassifier,
    Recurrent,
    ResNet,
    SqueezeExcite,
    Tasks,
    Tokens,
    TwoTowers,
    UNet,
)


def vgg(normalized: bool = True) -> Case:
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 32, 0, 64, 64, 0, 128, 128, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=not normalized)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if normalized else [conv, nn.ReLU(inplace=True)]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 10))
    return Case(model, images(), cross_entropy, adamw(model, 1e-3))


def resnet(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, zero_init: bool = False, excite: bool = False) -> Case:
    model = ResNet(norm, zero_init, SqueezeExcite if excite else None)
    return Case(model, images(), cross_entropy, sgd(model))


def layer_scale() -> Case:
    """ConvNeXt blocks, whose branches start at 1e-6."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))
    model = nn.Sequential(nn.Conv2d(3, 64, 4, 4), *(ConvNeXtBlock(64) for _ in range(6)), *head)
    return Case(model, images(), cross_entropy, adamw(model, 1e-3))


def mixer() -> Case:
    blocks = (MixerBlock(tokens=16, width=64) for _ in range(4))
    model = nn.Sequential(nn.Conv2d(3, 64, 8, 8), Tokens(), *blocks, nn.LayerNorm(64), MeanOverTokens(), nn.Linear(64, 10))
    return Case(model, images(), cross_entropy, adamw(model, 1e-3))


def conv_mixer() -> Case:
    model = ConvMixer(64, depth=6)
    return Case(model, images(), cross_entropy, adamw(model, 1e-3))


def recurrent(kind: type[nn.RNNBase], layers: int = 1, bidirectional: bool = False) -> Case:
    """The class from the last state of a sequence of 16 vectors."""
    model = Recurrent(kind, 8, 64, 10, layers, bidirectional)
    target = labels(32 * BATCHES, 10)
    inputs = patterned(target, (8, 16), 10).transpose(1, 2).contiguous()
    return Case(model, list(zip(inputs.split(32), target.split(32), strict=True)), cross_entropy, adamw(model, 3e-3))


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, width: int, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


def token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def lstm_language_model(tied: bool) -> Case:
    model = LanguageModel(500, 128, tied)
    tokens = sequences(16 * BATCHES, 25, 500)
    batches = [(x[:, :-1], x[:, 1:]) for x in tokens.split(16)]
    return Case(model, batches, token_loss, adamw(model, 2e-3))


def pre_norm_transformer() -> Case:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.1, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(128), enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(8, 128), encoder, MeanOverTokens(), nn.Linear(128, 10))
    target = labels(16 * BATCHES, 10)
    inputs = patterned(target, (8, 24), 10).transpose(1, 2).contiguous()
    return Case(model, list(zip(inputs.split(16), target.split(16), strict=True)), cross_entropy, adamw(model))


def post_norm_transformer() -> Case:
    """Post-norm with a rate small enough to need no warm-up."""
    model = PostNormClassifier(500, 128, layers=4, classes=5)
    tokens, target = documents(16 * BATCHES, 24, 500, classes=5)
    return Case(model, list(zip(tokens.split(16), target.split(16), strict=True)), cross_entropy, adamw(model, 2e-4))


def experts() -> Case:
    """Top-2 of four experts, with a loss that balances them."""
    model = Experts(32, 64, experts=4, classes=10)

    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits, balance = model(batch[0])
        return F.cross_entropy(logits, batch[1]) + 0.01 * balance

    return Case(model, vectors(), optimizer=adamw(model, 1e-3), training_step=step)


def frozen_backbone(evaluate_backbone: bool) -> Case:
    """A trained head on a frozen body, whose normalisation may be frozen as well."""
    case = vgg()
    body = case.model
    assert isinstance(body, nn.Sequential)
    for _ in range(3):  # the running statistics of a body that has been used
        body(case.batches[0][0])
    for parameter in body[:-1].parameters():
        parameter.requires_grad_(False)
    if evaluate_backbone:
        body[:-1].eval()
    return Case(body, case.batches, cross_entropy, adamw(body, 1e-2))


def u_net() -> Case:
    """Segmentation: a label for each pixel."""
    model = UNet(3, 16, classes=4)
    inputs = torch.randn(8 * BATCHES, 3, 32, 32)
    smooth = F.avg_pool2d(inputs, 7, stride=1, padding=3)
    target = (smooth[:, 0] > 0).long() + 2 * (smooth[:, 1] > 0).long()
    inputs = inputs + 3 * smooth
    return Case(model, list(zip(inputs.split(8), target.split(8), strict=True)), cross_entropy, adamw(model, 1e-3))


def auto_encoder() -> Case:
    """Sigmoid outputs for pixels between 0 and 1."""
    model = AutoEncoder(16)
    pixels = [x.mul(0.25).add(0.5).clamp(0, 1) for x, _ in images(16, channels=1)]
    return Case(model, [(x, x) for x in pixels], F.mse_loss, adamw(model, 1e-3))


def vae() -> Case:
    model = VAE(64, 8)

    def step(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        rebuilt, mean, log_variance = model(batch)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return F.mse_loss(rebuilt, batch, reduction="sum") / len(batch) + divergence

    return Case(model, [x for x, _ in vectors(shape=(64,))], optimizer=adamw(model, 1e-3), training_step=step)


def two_towers() -> Case:
    """Contrastive learning with a learnt temperature: each sample against the others of its batch."""
    model = TwoTowers(32, 64)
    batches = [(x, x @ torch.eye(32).roll(3, 0) + 0.3 * torch.randn_like(x)) for x, _ in vectors()]

    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        similarity = model(*batch)
        target = torch.arange(len(similarity))
        return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2

    return Case(model, batches, optimizer=adamw(model, 1e-3), training_step=step)


def discriminator() -> Case:
    """DCGAN's, telling patterns from noise."""
    model = Discriminator(32)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))
    batches = [(x.clamp(-2, 2) / 2, y.float()[:, None]) for x, y in images(32, classes=2)]
    return Case(model, batches, F.binary_cross_entropy_with_logits, optimizer)


def many_tasks() -> Case:
    """A shared body and a ModuleDict of heads, each with a loss of its own."""
    model = Tasks(32, 64, {"kind": 10, "colour": 3})
    batches = [(x, {"kind": y, "colour": y % 3}) for x, y in vectors()]

    def loss(output: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([F.cross_entropy(output[name], target[name]) for name in output]).sum()

    return Case(model, batches, loss, adamw(model, 1e-3))


class Bag(nn.Module):
    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(vocabulary, width, mode="mean", sparse=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(tokens))


def sparse_embedding() -> Case:
    """fastText: most rows of a sparse embedding get no gradient in a step."""
    model = Bag(5000, 64, 5)
    tokens, target = documents(32 * BATCHES, 20, 5000, classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    return Case(model, list(zip(tokens.split(32), target.split(32), strict=True)), cross_entropy, optimizer)


def recommender() -> Case:
    """Factors of users and items, multiplied; ratings around their mean."""
    model = Factors(200, 300, 16)
    pairs = torch.stack([torch.randint(0, 200, (64 * BATCHES,)), torch.randint(0, 300, (64 * BATCHES,))], dim=1)
    target = ((pairs[:, 0] % 5).float() - 2) * ((pairs[:, 1] % 3).float() - 1) / 1.2
    return Case(model, list(zip(pairs.split(64), target.split(64), strict=True)), F.mse_loss, adamw(model, 1e-2))


class Factors(nn.Module):
    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        nn.init.normal_(self.users.weight, std=0.3)
        nn.init.normal_(self.items.weight, std=0.3)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)


def registry() -> dict[str, Builder]:
    return {
        "vgg": vgg,
        "vgg-without-norm": partial(vgg, normalized=False),
        "resnet": resnet,
        "resnet-zero-init": partial(resnet, zero_init=True),
        "resnet-groupnorm": partial(resnet, norm=partial(nn.GroupNorm, 8)),
        "resnet-squeeze-excite": partial(resnet, excite=True),
        "convnext-layer-scale": layer_scale,
        "mlp-mixer": mixer,
        "conv-mixer": conv_mixer,
        "u-net": u_net,
        "rnn": partial(recurrent, nn.RNN),
        "gru": partial(recurrent, nn.GRU, layers=2),
        "lstm": partial(recurrent, nn.LSTM),
        "lstm-bidirectional": partial(recurrent, nn.LSTM, layers=2, bidirectional=True),
        "lstm-language-model": partial(lstm_language_model, tied=False),
        "lstm-language-model-tied": partial(lstm_language_model, tied=True),
        "transformer-pre-norm": pre_norm_transformer,
        "transformer-post-norm": post_norm_transformer,
        "mixture-of-experts": experts,
        "frozen-backbone": partial(frozen_backbone, evaluate_backbone=True),
        "frozen-backbone-training-mode": partial(frozen_backbone, evaluate_backbone=False),
        "autoencoder": auto_encoder,
        "vae": vae,
        "contrastive": two_towers,
        "dcgan-discriminator": discriminator,
        "multi-task": many_tasks,
        "sparse-embedding-bag": sparse_embedding,
        "recommender": recommender,
    }
