# A neural ODE on a spiral, with a Runge-Kutta step of one's own.
# healthy: error < 0.3
# fault: weights that start too large: the solution leaves every bound within a batch
# codes: NUM001 GRAD002 INIT002 ACT001
# at: nn.init.normal_( | k1 = | k2 = | k3 = | k4 = | self.net(
# -                 nn.init.normal_(m.weight, mean=0, std=0.1)
# +                 nn.init.normal_(m.weight, mean=0, std=5.0)
import torch
import torch.nn as nn

torch.manual_seed(0)
true_A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
t = torch.linspace(0.0, 10.0, 400)


def rk4(func, y0, times):
    ys = [y0]
    for t0, t1 in zip(times[:-1], times[1:]):
        h, y = t1 - t0, ys[-1]
        k1 = func(y)
        k2 = func(y + h / 2 * k1)
        k3 = func(y + h / 2 * k2)
        k4 = func(y + h * k3)
        ys.append(y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return torch.stack(ys)


class ODEFunc(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for m in self.net.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, mean=0, std=0.1)
                nn.init.constant_(m.bias, val=0)

    def forward(self, y):
        return self.net(y**3)


def loss_function(predicted, true):
    return torch.mean(torch.abs(predicted - true))


with torch.no_grad():
    true_y = rk4(lambda y: y**3 @ true_A, torch.tensor([[2.0, 0.0]]), t)

func = ODEFunc()
optimizer = torch.optim.Adam(func.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
for itr in range(1, 1501):
    starts = torch.randint(0, len(t) - 10, (20,))
    batch_y = torch.stack([true_y[starts + i] for i in range(10)])
    optimizer.zero_grad()
    loss = loss_function(rk4(func, batch_y[0], t[:10]), batch_y)
    loss.backward()
    optimizer.step()
    scheduler.step()
    if itr % 250 == 0:
        with torch.no_grad():
            print(f"Iter {itr:04d} | error {loss_function(rk4(func, true_y[0], t), true_y).item():.6f}")
