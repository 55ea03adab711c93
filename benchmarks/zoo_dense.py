"""Healthy dense networks in plain PyTorch: losses, activations, initialisations, wrappers and training schemes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from zoo_case import BATCHES, Builder, Case, adamw, cross_entropy, sgd, vectors
from zoo_pieces import Adapted, ReZero, Siren


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def plain_mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> Case:
    model = mlp(32, 128, 128, 128, 10, activation=activation)
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def regression() -> Case:
    """Standardised targets, mean squared error, one output."""
    model = mlp(16, 64, 64, 64, 1)
    inputs = torch.randn(32 * BATCHES, 16)
    target = (inputs[:, :4].sum(1, keepdim=True) / 2).tanh()
    target = (target - target.mean()) / target.std()
    return Case(model, list(zip(inputs.split(32), target.split(32), strict=True)), F.mse_loss, adamw(model, 1e-3))


def two_classes() -> Case:
    """One logit."""
    model = mlp(32, 64, 64, 1)
    batches = [(x, y.float()[:, None]) for x, y in vectors(classes=2)]
    return Case(model, batches, F.binary_cross_entropy_with_logits, adamw(model, 1e-3))


def probabilities() -> Case:
    """A sigmoid at the end and a loss that expects probabilities."""
    model = nn.Sequential(*mlp(32, 64, 64, 1), nn.Sigmoid())
    batches = [(x, y.float()[:, None]) for x, y in vectors(classes=2)]
    return Case(model, batches, F.binary_cross_entropy, adamw(model, 1e-3))


def log_probabilities() -> Case:
    model = nn.Sequential(*mlp(32, 64, 64, 10), nn.LogSoftmax(dim=1))
    return Case(model, vectors(), F.nll_loss, adamw(model, 1e-3))


def many_labels() -> Case:
    """Several labels for a sample."""
    model = mlp(32, 64, 64, 6)
    batches = [(x, F.one_hot(y, 6).float().roll(1, 1) + F.one_hot(y, 6).float()) for x, y in vectors(classes=6)]
    return Case(model, batches, F.binary_cross_entropy_with_logits, adamw(model, 1e-3))


def two_sigmoid_layers() -> Case:
    """Shallow, so the sigmoids do no harm."""
    model = mlp(32, 64, 64, 10, activation=nn.Sigmoid)
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-2))


def self_normalizing() -> Case:
    layers: list[nn.Module] = []
    for inputs, outputs in [(32, 64)] + [(64, 64)] * 6:
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU(), nn.AlphaDropout(0.05)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def orthogonal_tanh() -> Case:
    """Deep, and initialised for it."""
    layers: list[nn.Module] = []
    for inputs, outputs in [(32, 64)] + [(64, 64)] * 9:
        linear = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(linear.weight, gain=1.1)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def deep_normalized() -> Case:
    """Twenty plain layers, each with LayerNorm."""
    layers: list[nn.Module] = [nn.Linear(32, 64)]
    for _ in range(20):
        layers += [nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64)]
    model = nn.Sequential(*layers, nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def rezero() -> Case:
    """Branches multiplied by a scalar that starts at 0."""
    model = nn.Sequential(nn.Linear(32, 64), *(ReZero(64) for _ in range(12)), nn.Linear(64, 10))
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def zero_head() -> Case:
    """The last layer starts at zero: what lies before it gets no gradient in the first step."""
    model = mlp(32, 128, 128, 10)
    head = model[-1]
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def reparametrized(how: Callable[[nn.Module], nn.Module]) -> Case:
    layers: list[nn.Module] = []
    for inputs, outputs in [(32, 64), (64, 64), (64, 64)]:
        layers += [how(nn.Linear(inputs, outputs)), nn.LeakyReLU(0.2)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def compiled() -> Case:
    """torch.compile, with the backend that needs no compiler."""
    model = mlp(32, 64, 64, 10)
    wrapped: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return Case(wrapped, vectors(), cross_entropy, adamw(model, 1e-3))


def brain_float() -> Case:
    model = mlp(32, 128, 128, 10).bfloat16()
    batches = [(x.bfloat16(), y) for x, y in vectors()]
    return Case(model, batches, lambda output, target: F.cross_entropy(output.float(), target), sgd(model, 0.05, 0.0))


def autocast() -> Case:
    model = mlp(32, 128, 128, 10)

    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(batch[0]), batch[1])

    return Case(model, vectors(), optimizer=adamw(model, 1e-3), training_step=step)


def adapted() -> Case:
    """LoRA: frozen weights, low-rank adapters of which one factor starts at zero."""
    model = Adapted(32, 128, rank=4, classes=10)
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-2))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(4))
        self.stem, self.head = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def checkpointed() -> Case:
    model = Checkpointed()
    return Case(model, vectors(), cross_entropy, adamw(model, 1e-3))


def triplets() -> Case:
    """One network called three times a step."""
    model = nn.Sequential(*mlp(32, 64, 64), nn.ReLU(), nn.Linear(64, 16))
    loss = nn.TripletMarginLoss(margin=1.0)

    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return loss(*(model(x) for x in batch))

    def triple() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        anchor = torch.randn(32, 32)
        return anchor, anchor + 0.3 * torch.randn(32, 32), torch.randn(32, 32)

    return Case(model, [triple() for _ in range(BATCHES)], optimizer=adamw(model, 1e-3), training_step=step)


def noise_prediction() -> Case:
    """Diffusion: the noise is predicted, and redrawn in every step."""
    model = mlp(33, 128, 128, 32, activation=nn.SiLU)

    def step(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        time = torch.rand(len(batch), 1)
        noise = torch.randn_like(batch)
        return F.mse_loss(model(torch.cat([(1 - time).sqrt() * batch + time.sqrt() * noise, time], dim=1)), noise)

    return Case(model, [x for x, _ in vectors()], optimizer=adamw(model, 1e-3), training_step=step)


def siren() -> Case:
    """Sine activations, initialised for them, fitting an image from coordinates."""
    model = Siren(64, layers=3)
    coordinates = torch.rand(256 * BATCHES, 2) * 2 - 1
    target = (torch.sin(6 * coordinates[:, :1]) * torch.cos(5 * coordinates[:, 1:])).contiguous()
    batches = list(zip(coordinates.split(256), target.split(256), strict=True))
    return Case(model, batches, F.mse_loss, torch.optim.Adam(model.parameters(), lr=1e-3))


class Policy(nn.Module):
    """[N, 8] states to logits of 4 actions and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, 4), nn.Linear(64, 1)
        for layer, gain in ((self.body[0], math.sqrt(2)), (self.body[2], math.sqrt(2)), (self.actor, 0.01), (self.critic, 1.0)):
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(states)
        return self.actor(features), self.critic(features)[:, 0]


def actor_critic() -> Case:
    """PPO: the loss is no likelihood, may be negative, and two of its terms are maximised."""
    model = Policy()

    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        states, actions, returns = batch
        logits, value = model(states)
        chosen = torch.distributions.Categorical(logits=logits)
        advantage = (returns - value).detach()
        ratio = (chosen.log_prob(actions) + math.log(4)).exp()  # against the uniform policy that collected the batch
        gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        return 0.5 * F.mse_loss(value, returns) - gain - 0.01 * chosen.entropy().mean()

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        states, actions = torch.randn(64, 8), torch.randint(0, 4, (64,))
        return states, actions, states.gather(1, actions[:, None])[:, 0] + 0.1 * torch.randn(64)

    return Case(model, [batch() for _ in range(BATCHES)], optimizer=adamw(model, 3e-3), training_step=step)


def registry() -> dict[str, Builder]:
    return {
        "mlp": plain_mlp,
        "mlp-tanh": partial(plain_mlp, nn.Tanh),
        "mlp-gelu": partial(plain_mlp, nn.GELU),
        "mlp-regression": regression,
        "mlp-one-logit": two_classes,
        "mlp-probability": probabilities,
        "mlp-log-softmax": log_probabilities,
        "mlp-many-labels": many_labels,
        "mlp-two-sigmoids": two_sigmoid_layers,
        "mlp-selu": self_normalizing,
        "mlp-orthogonal-tanh": orthogonal_tanh,
        "mlp-deep-layernorm": deep_normalized,
        "mlp-zero-head": zero_head,
        "rezero": rezero,
        "lora": adapted,
        "siamese-triplets": triplets,
        "siren": siren,
        "weight-norm": partial(reparametrized, parametrizations.weight_norm),
        "spectral-norm": partial(reparametrized, parametrizations.spectral_norm),
        "checkpointed": checkpointed,
        "compiled": compiled,
        "bfloat16": brain_float,
        "autocast": autocast,
        "actor-critic": actor_critic,
        "diffusion": noise_prediction,
    }
