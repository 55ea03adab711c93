"""More random training scripts, of rewards, terms, embeddings and rates: see silent_programs.py."""

from __future__ import annotations

import random

POLICY = """
S, A, K = {states}, {actions}, {group}
goal = torch.randint(A, (S,)); worth = torch.rand(S)
class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(S, {width}), nn.Sequential(nn.Linear({width}, {width}), nn.Tanh(), nn.Linear({width}, A))
        self.value = nn.Linear({width}, 1)
    def forward(self, s): return self.body(self.embed(s))
policy = Policy()
opt = torch.optim.{optimizer}(policy.parameters(), lr={rate})
def score(s, a): return {score}
running = 0.0
for step in range(400):
    s = torch.randint(S, ({rows}, 1)).expand(-1, K)
    logits = policy(s)
    d = torch.distributions.Categorical(logits=logits)
    a = d.sample()
    reward = score(s, a)
    {advantage}
    logp = d.log_prob(a)
    {loss}
    opt.zero_grad(); loss.backward(); opt.step()
with torch.no_grad(): print("hits", float((policy(torch.arange(S)).argmax(1) == goal).float().mean()))
"""
NEAR = "(goal[s] == a).float()"
GRADED = "1 - (goal[s] - a).abs().float() / A"
GROUP = "advantage = reward - reward.mean(1, keepdim=True)"
SCALED = "advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)"
LEFT_OUT = "advantage = reward - (reward.sum(1, keepdim=True) - reward) / (K - 1)"
VALUE = "advantage = reward - policy.value(policy.embed(s))[..., 0].detach()"
RUNNING = "advantage = reward - running; running = 0.9 * running + 0.1 * reward.mean()"
SIMPLE = "loss = -(advantage * logp).mean()"
RATIO = "r = (logp - logp.detach()).exp(); loss = -torch.min(r * advantage, r.clamp(0.8, 1.2) * advantage).mean()"
CRITIC = "loss = -(advantage * logp).mean() + F.mse_loss(policy.value(policy.embed(s))[..., 0], reward)"
BONUS = "loss = -(advantage * logp).mean() - 0.01 * d.entropy().mean()"
REWARDS = (
    ((NEAR, GROUP, SIMPLE), (GRADED, SCALED, RATIO), (NEAR, VALUE, CRITIC), (GRADED, LEFT_OUT, BONUS), (NEAR, RUNNING, SIMPLE)),
    (
        ("worth[s]", GROUP, SIMPLE),
        ("worth[s]", SCALED, RATIO),
        ("(worth[s] > 0.5).float()", GROUP, BONUS),
        ("(s % 7).float()", SCALED, SIMPLE),
    ),
)
PAIRS = """
W = torch.randn({inputs})
judge = {net}
opt = torch.optim.{optimizer}(judge.parameters(), lr={rate})
for step in range(300):
    u, v = torch.randn(2, {rows}, {inputs})
    better = (u @ W > v @ W)[:, None]
    good, bad = torch.where(better, u, v), torch.where(better, v, u)
    {loss}
    opt.zero_grad(); loss.backward(); opt.step()
u, v = torch.randn(2, 500, {inputs})
print("agrees", float(((judge(u) > judge(v))[:, 0] == (u @ W > v @ W)).float().mean()))
"""
COMPARED = (
    (
        "loss = -F.logsigmoid(judge(good) - judge(bad)).mean()",
        "loss = F.relu(1 - (judge(good) - judge(bad))).mean()",
        "loss = F.margin_ranking_loss(judge(good), judge(bad), torch.ones_like(judge(bad)), margin=0.5)",
        "loss = F.binary_cross_entropy_with_logits(judge(u) - judge(v), better.float())",
    ),
    (
        "bad = good; loss = -F.logsigmoid(0.5 * (judge(good) - judge(bad))).mean()",
        "loss = F.relu(1 - (judge(good) - judge(good))).mean()",
        "g, b = judge(u), judge(u); loss = -F.logsigmoid(g - b).mean()",
    ),
)
DENOISED = """
a = datasets.{source}
x = torch.tensor((a - a.mean(0)) / (a.std() + 1e-6), dtype=torch.float32)
d = x.shape[1]
class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d + 1, {width}), nn.SiLU(), nn.Linear({width}, {width}), nn.SiLU(), nn.Linear({width}, d))
    def forward(self, u, t): return self.net(torch.cat([u, t], 1))
model = Denoiser()
opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
for step in range(600):
    u = x[torch.randint(len(x), ({rows},))]
    t = torch.rand(len(u), 1)
    {loss}
    opt.zero_grad(); loss.backward(); opt.step()
print("loss", float(loss))
"""
NOISED = (
    (
        "e = torch.randn_like(u); z = (1 - t).sqrt() * u + t.sqrt() * e; loss = F.mse_loss(model(z, t), e)",
        "e = torch.randn_like(u); loss = F.mse_loss(model((1 - t) * u + t * e, t), e - u)",
        "e = torch.randn(u.shape); loss = F.mse_loss(model(u + t * e, t), u)",
        "loss = F.mse_loss(model(u + 0.3 * torch.randn_like(u), t), u + 0.3 * torch.randn_like(u))",
    ),
    (
        "e = torch.randn_like(u); z = (1 - t).sqrt() * u + t.sqrt() * e; loss = F.mse_loss(model(z, t), torch.randn_like(u))",
        "z = (1 - t).sqrt() * u + t.sqrt() * torch.randn(u.shape); e = torch.randn(u.shape); loss = F.mse_loss(model(z, t), e)",
    ),
)


def _net(r: random.Random, i: int, o: int, acts: tuple[str, ...] = ("ReLU", "GELU", "Tanh", "SiLU"), deep: int = 2) -> str:
    wide, act, layers = r.choice((24, 48, 64)), r.choice(acts), []
    for _ in range(r.randint(1, deep)):
        layers += [f"nn.Linear({i}, {wide})", f"nn.{act}()"]
        i = wide
    return f"nn.Sequential({', '.join(layers)}, nn.Linear({i}, {o}))"


def rewards(r: random.Random, faulty: bool, i: int) -> str:
    optimizer, rate, width, rows = r.choice(("Adam", "AdamW")), r.choice((2e-3, 5e-3)), r.choice((16, 32)), r.choice((16, 32))
    kind, at = i % 3, i // 3
    if kind == 1:
        inputs, losses = r.randint(4, 12), COMPARED[faulty]
        return PAIRS.format(inputs=inputs, net=_net(r, inputs, 1), optimizer=optimizer, rate=rate, rows=rows, loss=losses[at % len(losses)])
    if kind == 2:
        losses = NOISED[faulty]
        source = r.choice(("load_digits().data", "make_moons(800, noise=0.05, random_state=1)[0]", "load_wine().data"))
        return DENOISED.format(source=source, width=2 * width, rows=rows, loss=losses[at % len(losses)])
    score, advantage, loss = REWARDS[faulty][at % len(REWARDS[faulty])]
    return POLICY.format(
        states=r.randint(8, 30), actions=r.randint(3, 8), group=r.choice((4, 6, 8)),
        width=width, optimizer=optimizer, rate=rate, score=score,
        rows=rows, advantage=advantage, loss=loss,
    )  # fmt: skip


TERMS = """
a, b = datasets.load_{data}(return_X_y=True)
x = torch.tensor((a - a.mean(0)) / (a.std(0) + 1e-3), dtype=torch.float32); y = torch.tensor(b)
d, c = x.shape[1], int(y.max()) + 1
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(d, {width}), nn.{act}(), nn.Linear({width}, {width}), nn.{act}())
        self.head = nn.Linear({width}, c)
    def forward(self, u):
        h = self.body(u)
        return self.head(h), h
net, teacher = Net(), Net().requires_grad_(False)
opt = torch.optim.{optimizer}(net.parameters(), lr=2e-3)
codes = torch.randn(16, {width})
for epoch in range(12):
  for u, v in DataLoader(TensorDataset(x, y), {size}, shuffle=True):
    out, h = net(u)
    loss = F.cross_entropy(out, v)
    {term}
    opt.zero_grad(); loss.backward(); opt.step()
print("loss", float(loss))
"""
SOFT = "F.kl_div(F.log_softmax({} / 2, -1), F.softmax({} / 2, -1), reduction='batchmean') * 4"
ENTROPY = "-(F.softmax({0}, -1) * F.log_softmax({0}, -1)).sum(-1).mean()"
ADDED = (
    (
        "loss = loss + 1e-3 * sum(p.square().sum() for p in net.parameters())",
        "t = teacher(u)[0]; loss = 0.7 * loss + 0.3 * " + SOFT.format("out", "t"),
        "loss = loss - 0.01 * " + ENTROPY.format("out"),
        "loss = loss + 1e-3 * h.abs().mean()",
        "loss = loss + 0.1 * F.relu(h.norm(dim=1) - 1e4).mean()",  # a bound that is met
        "other = net(u + 0.1 * torch.randn_like(u))[0]; loss = loss + F.mse_loss(other.softmax(-1), out.softmax(-1).detach())",
        "i = torch.cdist(h, codes).argmin(1); q = codes[i]\n    "
        "loss = loss + 0.25 * (h - q).square().mean(); l = (h + (q - h).detach()).mean()",
        "loss = loss + 0.05 * F.l1_loss(h, teacher(u)[1])",
        "m = out.max(-1, keepdim=True)[0].detach()\n    "
        "loss = -((out - m) - (out - m).exp().sum(-1, keepdim=True).log()).gather(1, v[:, None]).mean()",
        "with torch.no_grad(): w = F.softmax(out, -1).gather(1, v[:, None])[:, 0]\n    "
        "loss = ((1 - w) * F.cross_entropy(out, v, reduction='none')).mean()",
        "loss = loss + min(1.0, epoch / 6) * 0.1 * F.mse_loss(h[1:], h[:-1])",
        "loss = loss / 3; print(end='')",
    ),
    (
        "loss = loss + 0.1 * h.detach().square().mean()",
        "with torch.no_grad(): penalty = h.abs().mean()\n    loss = loss + 0.2 * penalty",
        "t = teacher(u)[0]; loss = 0.7 * loss + 0.3 * " + SOFT.format("teacher(u + 0.1)[0]", "t"),
        "loss = loss - 0.05 * " + ENTROPY.format("out.detach()"),
        "loss = loss + 0.3 * h.norm(dim=1).mean().item()",
        "with torch.no_grad(): other = net(u + 0.3 * torch.randn_like(u))[0]\n    loss = loss + F.mse_loss(other, out.detach())",
        "loss = loss + 0.1 * torch.tensor(h.var(0).mean().item())",
        "loss = loss + 0.1 * (out.argmax(1) != v).float().mean()",
        "loss = loss + 1e-3 * sum(p.square().sum() for p in teacher.parameters())",
        "loss = loss + 0.1 * sum(p.data.abs().sum() for p in net.parameters())",
        "i = torch.cdist(h, codes).argmin(1); loss = loss + 0.25 * F.mse_loss(h.detach(), codes[i])",
    ),
)
SOLVED = """
u_net = nn.Sequential(nn.Linear(1, {width}), nn.{act}(), nn.Linear({width}, {width}), nn.{act}(), nn.Linear({width}, 1))
opt = torch.optim.Adam(u_net.parameters(), lr=2e-3)
for step in range(400):
    t = torch.rand({size}, 1, requires_grad=True)
    u = u_net(t)
    first = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), t, create_graph=True)[0]
    loss = (second + {k} * torch.sin(3 * t)).square().mean() + 10 * (u_net(torch.zeros(1, 1)) ** 2 + u_net(torch.ones(1, 1)) ** 2).sum()
    opt.zero_grad(); loss.backward(); opt.step()
print("loss", float(loss))
"""


def terms(r: random.Random, faulty: bool, i: int) -> str:
    width, act = r.choice((24, 48)), r.choice(("ReLU", "GELU", "Tanh", "SiLU"))
    size, optimizer = r.choice((16, 32)), r.choice(("Adam", "AdamW", "RMSprop"))
    ways = ADDED[faulty]
    if (at := i % (len(ways) + 1)) == len(ways):
        return SOLVED.format(
            width=width, act=r.choice(("ReLU", "LeakyReLU")) if faulty else r.choice(("Tanh", "SiLU")), size=size, k=r.randint(3, 9)
        )
    return TERMS.format(
        data=r.choice(("digits", "wine", "breast_cancer")), width=width, act=act, size=size, optimizer=optimizer, term=ways[at]
    )


VIEWS = """
x = torch.tensor(datasets.load_digits().data / 16, dtype=torch.float32)
labels = torch.tensor(datasets.load_digits().target)
def view(u): return {view}
def net(i, w, o): return nn.Sequential(nn.Linear(i, w), {norm}nn.ReLU(), nn.Linear(w, o))
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(net(64, {width}, {width}), nn.ReLU())
        self.projector, self.predictor = net({width}, {width}, {code}), net({code}, {width}, {code})
    def forward(self, u): return self.projector(self.encoder(u))
model = Two()
{made}
opt = torch.optim.{optimizer}(model.parameters(), lr={rate})
for step in range(300):
    pick = torch.randint(len(x), ({rows},))
    u, c = x[pick], labels[pick]
    a, b = model(view(u)), model(view(u))
    {loss}
    opt.zero_grad(); loss.backward(); opt.step()
    {after}
z = F.normalize(model(x), dim=-1)
print("spread", float(z.std(0).mean() * z.shape[1] ** 0.5))
"""
TARGET = "import copy\ntarget = copy.deepcopy(model).requires_grad_(False)"
FOLLOWED = "for p, q in zip(target.parameters(), model.parameters()): p.data.lerp_(q.data, 0.05)"
COSINE = "-F.cosine_similarity({}, {}, dim=-1).mean()"
CROSS = "z = F.normalize(torch.cat([a, b]), dim=-1); s = z @ z.T / 0.3; s.fill_diagonal_(-1e9); n = len(a)\n    "
APART = "sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b))"
DECORRELATED = "p, q = ((z - z.mean(0)) / (z.std(0) + 1e-4) for z in (a, b)); m = p.T @ q / len(a)\n    "
BOTH = "p, q = model.predictor(a), model.predictor(b); "
EMBEDDED = (
    (
        (CROSS + "loss = F.cross_entropy(s, torch.arange(2 * n).roll(n))", "", ""),
        ("loss = 25 * F.mse_loss(a, b) + 25 * " + APART + " + sum(((z - z.mean(0)).T @ (z - z.mean(0)) / 15)"
         ".fill_diagonal_(0).square().sum() / z.shape[1] for z in (a, b))", "", ""),
        (BOTH + "loss = (" + COSINE.format("p", "b.detach()") + " + " + COSINE.format("q", "a.detach()") + ") / 2", "", ""),
        ("t = target(view(u)); loss = " + COSINE.format("model.predictor(a)", "t"), TARGET, FOLLOWED),
        (DECORRELATED + "loss = (m.diagonal() - 1).square().sum() + 5e-3 * (m - torch.diag(m.diagonal())).square().sum()", "", ""),
        ("loss = F.triplet_margin_loss(a, b, a.roll(1, 0), margin=1.0)", "", ""),
        ("z = F.normalize(a, dim=-1); w = F.normalize(b, dim=-1); loss = (z - w).square().sum(1).mean() + "
         "torch.pdist(z).square().mul(-2).exp().mean().log()", "", ""),
        ("same = (c[:, None] == c).float(); g = torch.cdist(a, b)\n    "
         "loss = (same * g.square() + (1 - same) * F.relu(1 - g).square()).mean()", "", ""),
    ),
    (
        ("loss = " + COSINE.format("a", "b"), "", ""),
        ("loss = F.mse_loss(a, b)", "", ""),
        (BOTH + "loss = (" + COSINE.format("p", "b") + " + " + COSINE.format("q", "a") + ") / 2", "", ""),
        ("loss = (" + COSINE.format("a", "b.detach()") + " + " + COSINE.format("b", "a.detach()") + ") / 2", "", ""),
        ("z = F.normalize(a, dim=-1); w = F.normalize(b, dim=-1); loss = (z - w).square().sum(1).mean()", "", ""),
        ("t = target(view(u)); loss = " + COSINE.format("a", "t"), TARGET, FOLLOWED),
    ),
)  # fmt: skip


def embeddings(r: random.Random, faulty: bool, i: int) -> str:
    ways = EMBEDDED[faulty]
    loss, made, after = ways[i % len(ways)]
    width = r.choice((48, 64, 96))
    view = r.choice(
        (
            "u + 0.2 * torch.randn_like(u)",
            "u * (torch.rand_like(u) > 0.2)",
            "u * (0.7 + 0.6 * torch.rand(len(u), 1)) + 0.1 * torch.randn_like(u)",
        )
    )
    return VIEWS.format(
        view=view, norm=r.choice(("", "nn.LayerNorm(w), ", "nn.BatchNorm1d(w), ")), width=width, code=r.choice((16, 32)),
        made=made, optimizer=r.choice(("Adam", "AdamW")), rate=r.choice((1e-3, 3e-3)), rows=r.choice((64, 128)), loss=loss, after=after,
    )  # fmt: skip


RATES = """
a, b = datasets.load_{data}(return_X_y=True)
x = torch.tensor((a - a.mean(0)) / (a.std(0) + 1e-3), dtype=torch.float32); y = torch.tensor(b)
d, c = x.shape[1], int(y.max()) + 1
model = nn.Sequential({layers})
opt = torch.optim.{optimizer}
{before}
for epoch in range(12):
  for u, v in DataLoader(TensorDataset(x, y), {size}, shuffle=True):
    loss = F.cross_entropy(model(u), v)
    opt.zero_grad(); loss.backward(); opt.step()
    {after}
h, idle = x, []
with torch.no_grad():
    for m in model:
        h = m(h)
        if type(m) in (nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.ReLU, nn.Softplus):
            s = h.abs().mean(0); idle.append(round(float((s <= 0.025 * s.mean()).float().mean()), 2))
    print("loss", float(F.cross_entropy(model(x), y)), "dormant", idle)
"""
WARMED = ("sched = torch.optim.lr_scheduler.LinearLR(opt, 0.01, 1.0, 40)", "sched.step()")


def _rated(r: random.Random, optimizer: str, acts: tuple[str, ...], warmed: bool = False, norm: bool = False) -> str:
    width, act = r.choice((48, 64, 96)), r.choice(acts)
    layers, wide = [], "d"
    for _ in range(r.randint(2, 4)):
        layers += [f"nn.Linear({wide}, {width})", *([f"nn.LayerNorm({width})"] if norm else []), f"nn.{act}()"]
        wide = str(width)
    before, after = WARMED if warmed else ("", "")
    data = r.choice(("digits", "breast_cancer", "digits"))
    return RATES.format(
        data=data, layers=", ".join([*layers, f"nn.Linear({wide}, c)"]),
        optimizer=optimizer, before=before, after=after, size=r.choice((16, 32)),
    )  # fmt: skip


USUAL = (
    "Adam({}, lr=1e-3)",
    "AdamW({}, lr=3e-3)",
    "SGD({}, lr=0.05, momentum=0.9)",
    "RMSprop({}, lr=1e-3)",
    "Adam({}, lr=3e-4)",
    "NAdam({}, lr=1e-3)",
)
SMOOTH = ("GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "ReLU", "Softplus")


def dormant(r: random.Random, faulty: bool, i: int) -> str:
    if faulty:
        return _rated(
            r,
            r.choice(("Adam({}, lr=0.1)", "AdamW({}, lr=0.1)", "Adam({}, lr=0.2)")).format("model.parameters()"),
            ("GELU", "SiLU", "Mish"),
        )
    return _rated(r, USUAL[i % len(USUAL)].format("model.parameters()"), SMOOTH, warmed=r.random() < 0.3, norm=r.random() < 0.3)


def rate(r: random.Random, faulty: bool, i: int) -> str:
    wrong = ("SGD({}, lr=20.0)", "Adam({}, lr=1.0)", "SGD({}, lr=10.0, momentum=0.9)", "AdamW({}, lr=0.5)", "RMSprop({}, lr=0.5)")
    if faulty:
        return _rated(r, wrong[i % len(wrong)].format("model.parameters()"), ("GELU", "SiLU", "Tanh", "ReLU"))
    return _rated(
        r, USUAL[i % len(USUAL)].format("model.parameters()"), SMOOTH[:2] + SMOOTH[4:], warmed=r.random() < 0.5, norm=r.random() < 0.4
    )
