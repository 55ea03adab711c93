"""More random training scripts, of opposed networks and of losses that are sums: see silent_programs.py."""

from __future__ import annotations

import random

GAN = """
class Smooth(nn.Module):
    def forward(self, u): return F.leaky_relu(u, 0.2)
a = {source}
real = torch.tensor((a - a.mean(0)) / a.std(), dtype=torch.float32) + {centre}
d = real.shape[1]
def net(i, o): return nn.Sequential(nn.Linear(i, {width}), Smooth(), nn.Linear({width}, {width}), Smooth(), nn.Linear({width}, o))
G, D = net({noise}, d), net(d, 1)
opt_g = torch.optim.{optimizer}(G.parameters(), lr={rate_g})
opt_d = torch.optim.{optimizer}(D.parameters(), lr={rate_d})
for step in range({steps}):
    fake, some = G(torch.randn(48, {noise})), real[torch.randint(len(real), (48,))]
    {turns}
    r, f = D(some), D(fake.detach())
    loss = {loss_d}
    opt_d.zero_grad(); loss.backward(); opt_d.step()
    {clamp}
    if step % {every}: continue
    o = D(fake)
    loss = {loss_g}
    opt_g.zero_grad(); loss.backward(); opt_g.step()
made = G(torch.randn(500, {noise}))
print("distance", float((made.mean(0) - real.mean(0)).norm() / real.std(0).norm()))
"""
SOURCES = (
    "datasets.make_moons(800, noise=0.05, random_state=1)[0]",
    "datasets.make_blobs(800, 3, centers=5, random_state=1)[0]",
    "datasets.load_digits().data",
    "datasets.make_swiss_roll(800, random_state=1)[0]",
    "datasets.load_wine().data[:, :6]",
)
BCE = "F.softplus(-r).mean() + F.softplus(f).mean()"
PROBABILITIES = "F.binary_cross_entropy(r.sigmoid(), torch.ones_like(r)) + F.binary_cross_entropy(f.sigmoid(), torch.zeros_like(f))"


def _gan(r: random.Random, loss_d: str, loss_g: str, *, lost: bool = False, turns: str = "", clamp: str = "", every: int = 1) -> str:
    rate = r.choice((5e-4, 1e-3, 2e-3))
    return GAN.format(
        source=r.choice(SOURCES), centre=r.choice((4.0, 6.0, -5.0)) if lost else r.choice((0.0, 0.5)), width=r.choice((32, 64)),
        noise=r.choice((3, 8)), optimizer=r.choice(("Adam", "AdamW")), rate_g=rate / 20 if lost else rate,
        rate_d=r.choice((5e-3, 1e-2)) if lost else rate * r.choice((0.5, 1, 2)), steps=2500, turns=turns, clamp=clamp, every=every,
        loss_d=loss_d, loss_g=loss_g,
    )  # fmt: skip


PENALTY = "torch.autograd.grad(D(some.requires_grad_()).sum(), some, create_graph=True)[0].square().sum(1).mean()"
CLAMP = "for p in D.parameters(): p.data.clamp_(-0.1, 0.1)"


def game(r: random.Random, faulty: bool, i: int) -> str:
    right = (
        (BCE, "F.softplus(-o).mean()", {}),
        (BCE, "-F.softplus(o).mean()", {}),
        ("F.relu(1 - r).mean() + F.relu(1 + f).mean()", "-o.mean()", {}),
        ("(r - 1).square().mean() + f.square().mean()", "(o - 1).square().mean()", {}),
        (f"f.mean() - r.mean() + {PENALTY}", "-o.mean()", {}),
        ("f.mean() - r.mean()", "-o.mean()", {"clamp": CLAMP}),
        (BCE, "F.softplus(-o).mean()", {"every": 2}),
        (f"{BCE} + 0.5 * {PENALTY}", "F.softplus(-o).mean()", {}),
        ("F.softplus(f - r).mean()", "F.softplus(r.detach() - o).mean()", {}),
        (PROBABILITIES, "F.binary_cross_entropy(o.sigmoid(), torch.ones_like(o))", {}),
        (BCE, "F.softplus(-o).mean() + 0.1 * (fake.mean(0) - real.mean(0)).square().sum()", {}),
        ("(f - (2 - fake.detach().square().sum(1, keepdim=True))).square().mean()", "-o.mean()", {}),
    )
    wrong = (
        (BCE, "-F.softplus(o).mean()", {}),
        (BCE, "(1 - o.sigmoid()).mean()", {}),
        (PROBABILITIES, "torch.log(1 - o.sigmoid() + 1e-8).mean()", {}),
        (PROBABILITIES, "-F.binary_cross_entropy(o.sigmoid(), torch.zeros_like(o))", {}),
        (BCE, "(o.sigmoid() - 1).square().mean()", {}),
    )
    loss_d, loss_g, more = (wrong if faulty else right)[i % len(wrong if faulty else right)]
    return _gan(r, loss_d, loss_g, lost=faulty, **more)


VAE = """
a = {source}
x = torch.tensor((a - a.mean(0)) / (a.std() + 1e-6), dtype=torch.float32)
d = x.shape[1]
class Coder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(d, {width}), nn.{act}())
        self.mean, self.spread = nn.Linear({width}, {code}), nn.Linear({width}, {code})
        self.outer = nn.Sequential(nn.Linear({code}, {width}), nn.{act}(), nn.Linear({width}, d))
    def forward(self, u):
        h = self.inner(u)
        mu, lv = self.mean(h), self.spread(h).clamp(-8, 8)
        return self.outer(mu + torch.randn_like(mu) * (0.5 * lv).exp()), mu, lv
model = Coder()
opt = torch.optim.{optimizer}
for step in range(1500):
    u = x[torch.randint(len(x), ({size},))]
    out, mu, lv = model(u)
    {loss}
    opt.zero_grad(); loss.backward(); opt.step()
print("error", float((model(x)[0] - x).square().mean() / x.var(0).mean()))
"""
KL = "kl = -0.5 * (1 + lv - mu.square() - lv.exp()); "
NORMAL = "kl = torch.distributions.kl_divergence(torch.distributions.Normal(mu, (0.5 * lv).exp()), torch.distributions.Normal(0.0, 1.0)); "
SQUARE = "loss = F.mse_loss(out, u)"
BALANCES = (
    [
        KL + SQUARE[:-1] + ", reduction='sum') / len(u) + kl.sum(1).mean()",
        KL + SQUARE[:-1] + ", reduction='sum') + kl.sum()",
        KL + SQUARE + " + kl.mean() * 0.1",
        KL + SQUARE + " + 1e-3 * kl.sum(1).mean()",
        KL + "loss = (out - u).square().sum(1).mean() + min(1.0, step / 500) * kl.sum(1).mean()",
        KL + "loss = (out - u).square().sum(1).mean() + 2.0 * kl.sum(1).mean()",
        KL + "loss = (out - u).square().sum(1).mean() + kl.mean(0).clamp(min=0.2).sum()",
        NORMAL + "loss = 0.5 * (out - u).square().sum(1).mean() + kl.sum(1).mean()",
        "loss = F.mse_loss(out, u) + 1e-3 * mu.abs().mean()",
        "loss = F.l1_loss(out, u) + 1e-4 * mu.square().sum(1).mean()",
        "loss = F.smooth_l1_loss(out, u) + 1e-5 * sum(p.square().sum() for p in model.parameters())",
        KL + "loss = (out - u).square().mean(1).sum() / len(u) + kl.sum() / (len(u) * d * 4)",
    ],
    [
        KL + SQUARE + " + kl.sum()",
        KL + SQUARE + " + kl.sum(1).mean() * 4",
        KL + "loss = (out - u).square().mean() + kl.sum()",
        NORMAL + SQUARE + " + kl.sum()",
        KL + "loss = F.l1_loss(out, u) + kl.sum()",
        "loss = F.mse_loss(out, u) + mu.square().sum()",
    ],
)


def balance(r: random.Random, faulty: bool, i: int) -> str:
    sources = ("datasets.load_digits().data", "datasets.make_low_rank_matrix(900, 40, effective_rank=4, random_state=1)")
    optimizers = ("Adam(model.parameters(), lr=2e-3)", "AdamW(model.parameters(), lr=3e-3)", "RMSprop(model.parameters(), lr=1e-3)")
    ways = BALANCES[faulty]
    return VAE.format(
        source=r.choice(sources), width=r.choice((48, 96, 160)), code=r.choice((3, 6, 12)), act=r.choice(("Tanh", "GELU", "ReLU")),
        optimizer=r.choice(optimizers), size=r.choice((32, 64)), loss=ways[i % len(ways)],
    )  # fmt: skip
