"""More random training scripts, of experts, adapters and narrow formats: see silent_programs.py."""

from __future__ import annotations

import random

EXPERTS = """
a, b = datasets.load_digits(return_X_y=True)
x = torch.tensor(a / 16, dtype=torch.float32); y = torch.tensor(b)
E, K, D = {experts}, {chosen}, {width}
class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(D, E{bias})
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(D, D), nn.{act}(), nn.Linear(D, D)) for _ in range(E)])
        {made}
    def forward(self, h):
        scores = self.router(h)
        {scores}
        p, i = probs.topk(K, -1)
        {weights}
        out = torch.zeros_like(h)
        for e, expert in enumerate(self.experts):
            row, place = (i == e).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, p[row, place, None] * expert(h[row]))
        load = F.one_hot(i, E).float().sum(1).mean(0) / K
        self.balance = E * (load * probs.mean(0)).sum()
        self.scores, self.load = scores, load
        return h + out{shared}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.moe, self.head = nn.Linear(64, D), Experts(), nn.Linear(D, 10)
    def forward(self, u): return self.head(self.moe(F.gelu(self.inner(u))))
model = Net()
opt = torch.optim.{optimizer}(model.parameters(), lr={rate})
{start}
for epoch in range(10):
  for u, v in DataLoader(TensorDataset(x, y), 64, shuffle=True):
    loss = F.cross_entropy(model(u), v){extra}
    opt.zero_grad(); loss.backward(); opt.step()
    {after}
model(x); load = model.moe.load
print("busiest", round(float(load.sort().values[-K:].sum()), 3), "idle", int((load == 0).sum()), "of", E)
"""
SOFTMAX, SIGMOID = "probs = scores.softmax(-1)", "probs = scores.sigmoid()"
PLAIN, SUMMED = "pass", "p = p / p.sum(-1, keepdim=True)"
BALANCED, LOGITS = " + 0.1 * model.moe.balance", " + 0.1 * model.moe.balance + 1e-3 * model.moe.scores.logsumexp(-1).square().mean()"
FREE = {
    "scores": "if self.training: scores = scores + torch.randn_like(scores) * 0.3\n        probs = scores.softmax(-1)",
    "extra": BALANCED,
}
TO_ONE = "with torch.no_grad(): model.moe.router.bias[:K] += {}"
ROUTED = (
    (
        {"extra": BALANCED},
        {"extra": LOGITS, "weights": SUMMED},
        FREE,
        {"scores": SIGMOID, "weights": SUMMED, "extra": BALANCED},
        {"extra": BALANCED, "made": "self.common = nn.Linear(D, D)", "shared": " + self.common(h)"},
        {"extra": BALANCED, "start": "nn.init.normal_(model.moe.router.weight, std=0.02); nn.init.zeros_(model.moe.router.bias)"},
    ),
    (
        {"start": TO_ONE.format("20.0")},
        {"start": TO_ONE.format("40.0"), "extra": " + 1e-6 * model.moe.balance"},
        {"start": "nn.init.constant_(model.moe.router.weight, 0.0)\n" + TO_ONE.format("4.0"), "weights": SUMMED, "after": ""},
        {"extra": " - 0.5 * model.moe.balance", "start": TO_ONE.format("1.0")},
    ),
)


def experts(r: random.Random, faulty: bool, i: int) -> str:
    way = {
        "scores": SOFTMAX,
        "weights": PLAIN,
        "extra": "",
        "made": "pass",
        "shared": "",
        "start": "",
        "after": "",
        **ROUTED[faulty][i % len(ROUTED[faulty])],
    }
    return EXPERTS.format(
        experts=r.choice((4, 6, 8)), chosen=r.choice((1, 2)), width=r.choice((32, 48)), bias="", act=r.choice(("GELU", "ReLU", "SiLU")),
        optimizer=r.choice(("Adam", "AdamW")), rate=r.choice((1e-3, 2e-3)), **way,
    )  # fmt: skip


ADAPTED = """
a, b = datasets.load_digits(return_X_y=True)
x = torch.tensor(a / 16, dtype=torch.float32).view(-1, 8, 8); y = torch.tensor(b)
R, ALPHA, D = {rank}, {alpha}, {width}
class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.scale = base, {scale}
        self.down, self.up = nn.Linear(base.in_features, R, bias=False), nn.Linear(R, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
    def forward(self, h): return self.base(h) + self.scale * self.up(self.down(h))
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.query, self.key, self.value = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
    def forward(self, h):
        n = self.norm(h)
        h = h + F.scaled_dot_product_attention(self.query(n), self.key(n), self.value(n))
        return h + self.down(F.gelu(self.up(h)))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layers, self.head = nn.Linear(8, D), nn.ModuleList(Block() for _ in range({depth})), nn.Linear(D, 10)
    def forward(self, u):
        h = self.embed(u)
        for layer in self.layers: h = layer(h)
        return self.head(h.mean(1))
def adapt(fits):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("layers.") and fits(name):
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, Adapter(module))
model = Net()
opt = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(60):
    i = torch.randint(len(x), (64,)); i = i[y[i] < 5]
    loss = F.cross_entropy(model(x[i]), y[i]); opt.zero_grad(); loss.backward(); opt.step()
for p in model.parameters(): p.requires_grad_(False)
{early}
adapt(lambda name: {fits})
for p in model.head.parameters(): p.requires_grad_()
{late}
for epoch in range(4):
  for u, v in DataLoader(TensorDataset(x, y), 32, shuffle=True):
    loss = F.cross_entropy(model(u), v)
    opt.zero_grad(); loss.backward(); opt.step()
sizes = [float(m.scale * (m.up.weight @ m.down.weight).norm() / m.base.weight.norm()) for m in model.modules() if isinstance(m, Adapter)]
print("loss", float(loss), "sizes", [round(s, 2) for s in sizes][:4])
"""
MAKE = "opt = torch.optim.{}([p for p in model.parameters() if p.requires_grad], lr={})"
ENDS = "name.endswith(('query', 'value'))"
EVERYTHING = "True"
COVERED = (
    (
        (ENDS, "", MAKE),
        (EVERYTHING, "", MAKE),
        ("name.endswith('query') and int(name.split('.')[1]) >= {half}", "", MAKE),
        ("name.endswith('up') and int(name.split('.')[1]) % 2 == 0", "", MAKE),
        ("name.split('.')[-1] in ('up', 'down')", "", "model.head.requires_grad_(False); " + MAKE),
        ("re.fullmatch(r'layers\\.\\d+\\.(query|key)', name)", "", MAKE),
    ),
    (
        ("name.startswith('layers.1') and name.endswith('query')", "", MAKE),
        ("re.search(r'layers\\.[0-2]\\.', name) and name.endswith('value')", "", MAKE),
        (ENDS, "", "for n, p in model.named_parameters():\n  if 'base' not in n and 'head' not in n: p.requires_grad_(False)\n" + MAKE),
        (ENDS, "for p in model.head.parameters(): p.requires_grad_()\n" + MAKE, ""),
        (EVERYTHING, "", "opt = torch.optim.{}(model.head.parameters(), lr={})"),
        ("name in ('layers.0.query', 'layers.0.value', 'layers.3.query', 'layers.3.value')", "", MAKE),
    ),
)


def _adapted(r: random.Random, way: tuple[str, str, str], depth: int, rank: int, alpha: int, scale: str, rate: float) -> str:
    fits, early, late = way
    optimizer = r.choice(("Adam", "AdamW"))
    return ADAPTED.format(
        rank=rank, alpha=alpha,
        width=r.choice((64, 96)) * (1 if rank < 64 else 2), scale=scale, depth=depth, fits=fits.format(half=depth // 2),
        early=early.format(optimizer, rate), late=late.format(optimizer, rate),
    )  # fmt: skip


def coverage(r: random.Random, faulty: bool, i: int) -> str:
    way = COVERED[faulty][i % len(COVERED[faulty])]
    rank = r.choice((2, 4, 8))
    return "import re\n" + _adapted(
        r, way, r.choice((5, 6)) if faulty else r.choice((4, 6)), rank, 2 * rank, "ALPHA / R", r.choice((1e-3, 2e-3))
    )


def scale(r: random.Random, faulty: bool, i: int) -> str:
    way = COVERED[0][i % 2]
    if not faulty:
        rank, alpha, by = r.choice(
            (
                (4, 8, "ALPHA / R"),
                (8, 16, "ALPHA / R"),
                (16, 32, "ALPHA / R"),
                (64, 16, "ALPHA / R ** 0.5"),
                (32, 64, "ALPHA / R"),
                (64, 128, "ALPHA / R"),
            )
        )
        return "import re\n" + _adapted(r, way, 3, rank, alpha, by, r.choice((5e-4, 1e-3)))
    if i % 3 == 2:
        return "import re\n" + _adapted(r, way, 3, r.choice((8, 16)), 64, "ALPHA / R", 0.1)
    rank = r.choice((64, 64, 96))
    return "import re\n" + _adapted(r, way, 3, rank, r.choice((8, 16)), "ALPHA / R", r.choice((5e-4, 1e-3)))


NARROW = """
a, b = datasets.load_digits(return_X_y=True)
x = torch.tensor(a{over}, dtype=torch.float32); y = torch.tensor(b)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.middle, self.head = nn.Linear(64, {width}), nn.Linear({width}, {width}), nn.Linear({width}, 10)
    def forward(self, u):
        h = F.{act}(self.inner(u))
        {middle}
        return self.head(h)
model = Net()
opt = torch.optim.{optimizer}
scaler = torch.amp.GradScaler("cuda", enabled={scaler})
for epoch in range({epochs}):
  for u, v in DataLoader(TensorDataset(x, y), {size}, shuffle=True):
    with torch.autocast("cuda", dtype=torch.float16, enabled=torch.cuda.is_available()):
        {loss}
    opt.zero_grad(); scaler.scale(loss).backward(); scaler.step(opt); scaler.update()
print("loss", float(loss))
"""
STRONG = "loss = F.cross_entropy(model(u), v)"
FORMATS = (
    (
        {},
        {"scaler": "torch.cuda.is_available()"},
        {"middle": "h = h + F.gelu(self.middle(h))"},
        {"loss": "loss = F.cross_entropy(model(u), v, label_smoothing=0.1)"},
        {"optimizer": "SGD(model.parameters(), lr=0.05, momentum=0.9)"},
        {"middle": "h = F.layer_norm(self.middle(h), h.shape[-1:])"},
    ),
    (
        {"middle": "h = self.middle(h * 1e7)"},
        {"middle": "h = F.gelu(self.middle(h * 1e7)) / 1e7"},
        {"middle": "h = self.middle(h * 1e-9); h = h * 1e9"},
        {"loss": "loss = F.cross_entropy(200 * model(u), v)", "scaler": "False", "rate": 1e-2},
    ),
)


def formats(r: random.Random, faulty: bool, i: int) -> str:
    way = {
        "middle": "h = F.gelu(self.middle(h))",
        "scaler": "True",
        "loss": STRONG,
        "over": " / 16",
        **FORMATS[faulty][i % len(FORMATS[faulty])],
    }
    way.setdefault("optimizer", f"{r.choice(('Adam', 'AdamW'))}(model.parameters(), lr={way.pop('rate', r.choice((1e-3, 2e-3)))})")
    return NARROW.format(width=r.choice((48, 96)), act=r.choice(("relu", "gelu", "silu")), epochs=8, size=r.choice((16, 32)), **way)
