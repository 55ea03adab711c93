# A mixture of experts with a top-1 router and a balancing loss.
# healthy: mse < 0.03
# fault: the balancing loss is left out and the router starts with a bias: one expert gets everything
# codes: MOE001
# at: self.router | route = | self.gate
# -     loss = F.mse_loss(out, y) + 0.05 * balance
# +     loss = F.mse_loss(out, y)
# -         self.router = nn.Linear(dim, experts)
# +         self.router = nn.Linear(dim, experts)
# +         nn.init.constant_(self.router.bias[:1], 10.0)
import torch
import torch.nn as nn
import torch.nn.functional as F


class MoE(nn.Module):
    def __init__(self, dim=32, hidden=16, experts=4):
        super().__init__()
        self.router = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in range(experts))

    def forward(self, x):
        gates = self.router(x).softmax(dim=-1)
        weight, choice = gates.max(dim=-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (choice == i).nonzero(as_tuple=True)[0]
            if len(rows):
                out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        fraction = F.one_hot(choice, len(self.experts)).float().mean(0)
        balance = len(self.experts) * (fraction * gates.mean(0)).sum()
        return x + out, balance


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.moe, self.norm, self.out = nn.Linear(6, 32), MoE(), nn.LayerNorm(32), nn.Linear(32, 1)

    def forward(self, x):
        h, balance = self.moe(self.norm(self.inp(x)))
        return self.out(h).squeeze(-1), balance


def sample(n):
    """Four regions, a function of its own in each."""
    x = torch.rand(n, 6) * 2 - 1
    region = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    functions = torch.stack([(3 * x[:, 2]).sin(), x[:, 3] * x[:, 4] * 2, -(3 * x[:, 5]).cos(), x[:, 2] - x[:, 5]], 1)
    return x, functions.gather(1, region[:, None]).squeeze(1)


torch.manual_seed(0)
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(3000):
    x, y = sample(256)
    out, balance = model(x)
    loss = F.mse_loss(out, y) + 0.05 * balance
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 500 == 0:
        print(step, loss.item(), balance.item())
x, y = sample(4000)
with torch.no_grad():
    print("mse", F.mse_loss(model(x)[0], y).item())
