# A physics-informed net for a damped oscillator: second derivatives by autograd, and the initial conditions.
# healthy: error < 0.05
# fault: ReLU, whose second derivative is zero
# codes: LOSS009 GRAPH001 NUM002
# at: nn.ReLU() | torch.autograd.grad(
# -             layers += [nn.Linear(inputs, hidden), nn.Tanh()]
# +             layers += [nn.Linear(inputs, hidden), nn.ReLU()]
import torch
from torch import nn

DAMPING, FREQUENCY = 0.5, 3.0


class PINN(nn.Module):
    def __init__(self, hidden=48, depth=3):
        super().__init__()
        layers, inputs = [], 1
        for _ in range(depth):
            layers += [nn.Linear(inputs, hidden), nn.Tanh()]
            inputs = hidden
        self.net = nn.Sequential(*layers, nn.Linear(hidden, 1))

    def forward(self, t):
        return self.net(t)


def derivative(u, t):
    return torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)[0]


def exact(t):
    w = (FREQUENCY**2 - DAMPING**2) ** 0.5
    return torch.exp(-DAMPING * t) * (torch.cos(w * t) + DAMPING / w * torch.sin(w * t))


def main():
    torch.manual_seed(123)
    model = PINN()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    start = torch.zeros(1, 1, requires_grad=True)
    points = torch.linspace(0, 2, 60).view(-1, 1).requires_grad_(True)
    for step in range(6001):
        u0 = model(start)
        initial = (u0 - 1).pow(2).mean() + 0.1 * derivative(u0, start).pow(2).mean()
        u = model(points)
        du = derivative(u, points)
        d2u = derivative(du, points)
        residual = (d2u + 2 * DAMPING * du + FREQUENCY**2 * u).pow(2).mean()
        loss = initial + 1e-2 * residual
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 1000 == 0:
            print(f"step {step} loss {loss.item():.3e}")
    with torch.no_grad():
        t = torch.linspace(0, 2, 200).view(-1, 1)
        print("error", (model(t) - exact(t)).abs().mean().item())


if __name__ == "__main__":
    main()
