# Mixed precision: autocast to bfloat16 on the CPU, weights in float32.
# healthy: test_mse < 0.02
# fault: the whole model is cast to bfloat16, and its small steps are lost
# codes: NUM005
# at: .bfloat16() | .to(torch.bfloat16) | AdamW(
# -     model = Regressor()
# +     model = Regressor().to(torch.bfloat16)
# -             prediction = model(x)
# +             prediction = model(x.to(torch.bfloat16))
# -         test_mse = (model(x_test).squeeze(1) - y_test).pow(2).mean().item()
# +         test_mse = (model(x_test.to(torch.bfloat16)).float().squeeze(1) - y_test).pow(2).mean().item()
import argparse

import torch
from torch import nn


class Regressor(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(2))
        self.out = nn.Linear(width, 1)

    def forward(self, x):
        x = self.inp(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


def sample(n):
    x = torch.rand(n, 4) * 2 - 1
    return x, (2 * x[:, 0] * x[:, 1] + torch.sin(4 * x[:, 2]) * x[:, 3])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=2e-4)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Regressor()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        x, y = sample(128)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = model(x)
            loss = nn.functional.mse_loss(prediction.squeeze(1).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            print(step, round(loss.item(), 4))
    x_test, y_test = sample(2000)
    with torch.no_grad():
        test_mse = (model(x_test).squeeze(1) - y_test).pow(2).mean().item()
    print("test_mse", test_mse)


if __name__ == "__main__":
    main()
