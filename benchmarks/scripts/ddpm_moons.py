# Diffusion: a DDPM for two moons, noise prediction, an EMA of the weights for sampling.
# healthy: distance < 0.12
# fault: the number of the step is given to the network as it is, 0 to 999
# codes: DATA001
# at: t.float() | self.net( | nn.Linear(2 + | model(noisy
# -         return self.net(torch.cat([x, self.embedding(t)], dim=1))
# +         return self.net(torch.cat([x, t.float()[:, None].expand(-1, 32)], dim=1))
import copy
import math

import torch
from sklearn.datasets import make_moons
from torch import nn


class SinusoidalEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2)))

    def forward(self, t):
        angles = t.float()[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class NoiseModel(nn.Module):
    def __init__(self, hidden=128):
        super().__init__()
        self.embedding = SinusoidalEmbedding(32)
        self.net = nn.Sequential(
            nn.Linear(2 + 32, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2),
        )

    def forward(self, x, t):
        return self.net(torch.cat([x, self.embedding(t)], dim=1))


class Diffusion:
    def __init__(self, steps=1000):
        self.steps = steps
        self.beta = torch.linspace(1e-4, 0.02, steps)
        self.alpha = 1 - self.beta
        self.alpha_bar = torch.cumprod(self.alpha, dim=0)

    def add_noise(self, x0, t, noise):
        a = self.alpha_bar[t][:, None]
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    @torch.no_grad()
    def sample(self, model, n, stride=5):
        x = torch.randn(n, 2)
        for i in reversed(range(0, self.steps, stride)):
            a, before = self.alpha_bar[i], self.alpha_bar[i - stride] if i >= stride else torch.tensor(1.0)
            eps = model(x, torch.full((n,), i))
            x = before.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - before).sqrt() * eps
        return x


def main():
    torch.manual_seed(0)
    points = torch.tensor(make_moons(4000, noise=0.03, random_state=0)[0], dtype=torch.float32)
    points = (points - points.mean(0)) / points.std(0)
    diffusion = Diffusion()
    model = NoiseModel()
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(4000):
        x0 = points[torch.randint(len(points), (256,))]
        t = torch.randint(0, diffusion.steps, (256,))
        noise = torch.randn_like(x0)
        noisy = diffusion.add_noise(x0, t, noise)
        loss = nn.functional.mse_loss(model(noisy, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(ema.parameters(), model.parameters()):
                p.lerp_(q, 0.01)
        if step % 500 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    samples = diffusion.sample(ema, 500)
    print("distance", torch.cdist(samples, points).min(dim=1).values.mean().item())


if __name__ == "__main__":
    main()
