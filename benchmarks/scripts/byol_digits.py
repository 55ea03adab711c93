# BYOL on digits: an online network with a predictor, a target network that follows it slowly.
# healthy: probe > 0.7
# fault: no predictor, no stop-gradient, no slow target: everything becomes one point
# codes: ACT004 GRAPH008
# at: regression_loss( | target(v | target =
# -         with torch.no_grad():
# -             t1, t2 = target(v1), target(v2)
# -         loss = regression_loss(predictor(online(v1)), t2) + regression_loss(predictor(online(v2)), t1)
# +         t1, t2 = online(v1), online(v2)
# +         loss = regression_loss(t1, t2) + regression_loss(t2, t1)
import copy

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F


def mlp(inputs, hidden, outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def view(x):
    x = x.view(-1, 8, 8)
    x = torch.roll(x, tuple(torch.randint(-1, 2, (2,)).tolist()), dims=(1, 2)).flatten(1)
    return x * (0.7 + 0.6 * torch.rand(len(x), 1)) * (torch.rand_like(x) > 0.1)


def regression_loss(p, z):
    return 2 - 2 * F.cosine_similarity(p, z, dim=-1).mean()


def main():
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    online = mlp(64, 256, 64)
    predictor = mlp(64, 128, 64)
    target = copy.deepcopy(online)
    target.requires_grad_(False)
    optimizer = torch.optim.Adam([*online.parameters(), *predictor.parameters()], lr=1e-3)
    for step in range(1200):
        batch = images[torch.randint(0, 1500, (128,))]
        v1, v2 = view(batch), view(batch)
        with torch.no_grad():
            t1, t2 = target(v1), target(v2)
        loss = regression_loss(predictor(online(v1)), t2) + regression_loss(predictor(online(v2)), t1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters()):
                slow.mul_(0.99).add_(fast, alpha=0.01)
        if step % 200 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    with torch.no_grad():
        features = F.normalize(online(images), dim=1).numpy()
    probe = LogisticRegression(max_iter=500).fit(features[:1500], digits.target[:1500])
    print("probe", probe.score(features[1500:], digits.target[1500:]))


if __name__ == "__main__":
    main()
