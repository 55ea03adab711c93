"""Healthy trainings of several kinds, longer than a scan: none of them is to get an error or a warning."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.live.loops import Watch, batches, blobs


def with_warmup(watch: Watch) -> None:
    """A residual network of convolutions with batch norm, SGD, momentum, warm-up from nothing, cosine decay to nothing."""
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = 320
    shape = lambda t: min((t + 1) / 60, 0.5 * (1 + math.cos(math.pi * t / steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    patterns = torch.randn(4, 1, 8, 8)
    with watch(model, optimizer):
        for _ in range(steps):
            y = torch.randint(0, 4, (32,))
            x = patterns[y] + 0.8 * torch.randn(32, 1, 8, 8)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        make = lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False))  # noqa: E731
        self.blocks = nn.ModuleList([make() for _ in range(2)])
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(F.avg_pool2d(F.relu(self.norm(h)), 2).flatten(1))


class Language(nn.Module):
    """A small transformer with tied embeddings."""

    def __init__(self, vocabulary: int = 32, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.place = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.1, batch_first=True, norm_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embed(tokens) + self.place[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.norm(self.body(h, mask=mask, is_causal=True)) @ self.embed.weight.T


def language(watch: Watch) -> None:
    """Next tokens under bfloat16 autocast, AdamW, clipping, accumulation of two."""
    torch.manual_seed(0)
    model = Language()
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3)
    with watch(model, optimizer):
        for step in range(600):
            start = torch.randint(0, 32, (8, 1))
            tokens = (start + 3 * torch.arange(9)) % 32
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(tokens[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()) / 2
            loss.backward()
            if step % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def recurrent(watch: Watch) -> None:
    torch.manual_seed(0)
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with watch(model, optimizer):
        for _ in range(310):
            phase = 6.28 * torch.rand(32, 1)
            wave = torch.sin(phase + 0.4 * torch.arange(21))
            optimizer.zero_grad()
            F.mse_loss(model(wave[:, :20, None]), wave[:, 20:]).backward()
            optimizer.step()


def fine_tuned(watch: Watch) -> None:
    """A frozen body that was trained before, a new head, a low rate; the loss starts low and hardly moves any more."""
    torch.manual_seed(0)
    x, y = blobs()
    body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model = nn.Sequential(body, nn.Linear(64, 5))
    first = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        first.zero_grad()
        F.cross_entropy(model(x), y).backward()
        first.step()
    body.requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=1e-5)
    with watch(model, optimizer):
        for a, b in batches(320):
            optimizer.zero_grad()
            F.cross_entropy(model(a), b).backward()
            optimizer.step()


def rewarded(watch: Watch) -> None:
    """REINFORCE on a bandit with contexts: a loss without a level that it should reach."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    best, mean = torch.randn(4, 3), 0.0
    with watch(policy, optimizer):
        for _ in range(320):
            context = torch.randn(64, 4)
            chances = torch.distributions.Categorical(logits=policy(context))
            action = chances.sample()
            reward = (context @ best).gather(1, action[:, None]).squeeze(1) + 0.5 * torch.randn(64)
            optimizer.zero_grad()
            (-(chances.log_prob(action) * (reward - mean)).mean() - 0.01 * chances.entropy().mean()).backward()
            optimizer.step()
            mean = 0.9 * mean + 0.1 * float(reward.mean())


def values(watch: Watch) -> None:
    """Q-learning with a target network: the loss grows while the values do."""
    torch.manual_seed(0)
    net, target = (nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)) for _ in range(2))
    target.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with watch(net, optimizer):
        for step in range(600):
            state = torch.randn(64, 4)
            action = torch.randint(0, 2, (64, 1))
            reward = 1.0 + 0.3 * state[:, :1] * (2 * action - 1)
            with torch.no_grad():
                goal = reward + 0.97 * target(0.9 * state + 0.1 * torch.randn(64, 4)).max(1, keepdim=True).values
            optimizer.zero_grad()
            F.smooth_l1_loss(net(state).gather(1, action), goal).backward()
            nn.utils.clip_grad_value_(net.parameters(), 10.0)
            optimizer.step()
            if step % 40 == 39:
                target.load_state_dict(net.state_dict())


def two_halves(watch: Watch) -> None:
    """Matrices and vectors of one model, each with an optimizer of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    vectors = torch.optim.AdamW([p for p in model.parameters() if p.dim() < 2], lr=1e-3, weight_decay=0.0)
    matrices = torch.optim.SGD([p for p in model.parameters() if p.dim() > 1], lr=0.05, momentum=0.9)
    with watch(model, vectors):
        for x, y in batches(320):
            vectors.zero_grad()
            matrices.zero_grad()
            F.cross_entropy(model(x), y).backward()
            vectors.step()
            matrices.step()


KINDS: dict[str, Callable[[Watch], None]] = {
    f.__name__: f for f in (with_warmup, language, recurrent, fine_tuned, rewarded, values, two_halves)
}
