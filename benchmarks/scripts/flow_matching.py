# Flow matching from a Gaussian to two moons, Euler steps for sampling.
# healthy: distance < 0.1
# fault: the velocity comes out of a ReLU
# codes: LOSS001 ACT002
# at: nn.ReLU()) | flow(x_t, t)
# -         self.net = nn.Sequential(*layers, nn.Linear(h, dim))
# +         self.net = nn.Sequential(*layers, nn.Linear(h, dim), nn.ReLU())
import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn


class Flow(nn.Module):
    def __init__(self, dim: int = 2, h: int = 128, depth: int = 3):
        super().__init__()
        layers = [nn.Linear(dim + 1, h), nn.ELU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(h, h), nn.ELU()]
        self.net = nn.Sequential(*layers, nn.Linear(h, dim))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat((t, x_t), -1))

    def step(self, x_t: Tensor, t_start: Tensor, t_end: Tensor) -> Tensor:
        t_start = t_start.view(1, 1).expand(x_t.shape[0], 1)
        half = (t_end - t_start) / 2
        return x_t + (t_end - t_start) * self(x_t + self(x_t, t_start) * half, t_start + half)


np.random.seed(0)
torch.manual_seed(0)
flow = Flow()
optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
loss_fn = nn.MSELoss()
for i in range(3000):
    x_1 = torch.tensor(make_moons(256, noise=0.05)[0], dtype=torch.float32)
    x_0 = torch.randn_like(x_1)
    t = torch.rand(len(x_1), 1)
    x_t = (1 - t) * x_0 + t * x_1
    dx_t = x_1 - x_0
    optimizer.zero_grad()
    loss = loss_fn(flow(x_t, t), dx_t)
    loss.backward()
    optimizer.step()
    if i % 1000 == 0:
        print(i, loss.item())

with torch.no_grad():
    x = torch.randn(2000, 2)
    steps = torch.linspace(0, 1.0, 17)
    for a, b in zip(steps, steps[1:]):
        x = flow.step(x, a, b)
moons = torch.tensor(make_moons(2000, noise=0.05)[0], dtype=torch.float32)
print("distance", torch.cdist(x, moons).min(1).values.mean().item())
