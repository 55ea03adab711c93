"""Random training scripts, healthy and with a silent fault, for each rule of such faults. `program(code, faulty, seed)` is the text of one.

Each kind lists several ways to do it right and several to do it wrong; data, model, sizes, rates and optimizer are drawn. Nothing here was
used to set a limit.
"""

from __future__ import annotations

import random

from silent_games import balance, game
from silent_parts import coverage, experts, formats, scale
from silent_sequences import LOOPS, WAYS, padded, sequences
from silent_signals import dormant, embeddings, rate, rewards, terms

START = """
import math, torch
import numpy as np
from collections import deque
from sklearn import datasets
from sklearn.model_selection import KFold, train_test_split
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler, random_split

torch.manual_seed({seed})
"""
DATA = {
    "digits": ("datasets.load_digits(return_X_y=True)", 64, 10),
    "wine": ("datasets.load_wine(return_X_y=True)", 13, 3),
    "cancer": ("datasets.load_breast_cancer(return_X_y=True)", 30, 2),
    "made": ("datasets.make_classification(900, 20, n_informative=12, n_classes=4, random_state=1)", 20, 4),
    "diabetes": ("datasets.load_diabetes(return_X_y=True)", 10, 0),
    "friedman": ("datasets.make_friedman1(700, 12, random_state=1)", 12, 0),
}
TABLE = """
a, b = {load}
x = torch.tensor((a - a.mean(0)) / (a.std(0) + 1e-3), dtype=torch.float32)
y = {target}
loss_fn = {loss}
def make(): return {model}
model = make()
def make_opt(): return {optimizer}
opt = make_opt()
def train(rows):
    loss = loss_fn(model(x[rows]), y[rows])
    opt.zero_grad(); loss.backward(); opt.step()
def fit(loader):
    model.train()
    for u, v in loader:
        loss = loss_fn(model(u), v)
        opt.zero_grad(); loss.backward(); opt.step()
def look(loader):
    model.eval()
    with torch.no_grad():
        return sum(loss_fn(model(u), v).item() for u, v in loader)
n, size = len(x), {size}
data = TensorDataset(x, y)
"""
OPTIMIZERS = (
    "torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)",
    "torch.optim.Adam(model.parameters(), lr=2e-3)",
    "torch.optim.AdamW(model.parameters(), lr=3e-3)",
    "torch.optim.RMSprop(model.parameters(), lr=1e-3)",
)


def _net(r: random.Random, i: str, o: str, deep: int = 3) -> str:
    act = r.choice(("nn.ReLU()", "nn.GELU()", "nn.Tanh()", "nn.SiLU()"))
    width, layers, wide = r.choice((24, 48, 96)), [], i
    for _ in range(r.randint(1, deep)):
        layers += [f"nn.Linear({wide}, {width})", *([f"nn.LayerNorm({width})"] if r.random() < 0.3 else []), act]
        wide = str(width)
    return f"nn.Sequential({', '.join([*layers, f'nn.Linear({wide}, {o})'])})"


def _table(r: random.Random, *names: str) -> str:
    load, inputs, classes = DATA[r.choice(names or tuple(DATA))]
    if classes:
        target, loss, outputs = "torch.tensor(b)", "nn.CrossEntropyLoss()", classes
    else:
        target, loss, outputs = "torch.tensor((b - b.mean()) / b.std(), dtype=torch.float32)[:, None]", "nn.MSELoss()", 1
    model = _net(r, str(inputs), str(outputs))
    optimizer, size = r.choice(OPTIMIZERS), r.choice((16, 24, 32))
    return TABLE.format(load=load, target=target, loss=loss, model=model, optimizer=optimizer, size=size)


EPOCHS = "for epoch in range(40):\n  for u, v in DataLoader(data, size, shuffle=True):\n"
LOSS = "    loss = loss_fn(model(u), v)\n"
STEP = "    opt.zero_grad(); loss.backward(); opt.step()\n"


def _kept(after: str, before: str = "", loop: str = EPOCHS + LOSS + STEP) -> str:
    return before + "\n" + loop + (f"    {after}\n" if after else "")


METER = """class Meter:
    total, count = 0.0, 0
    def add(self, value, n):
        self.total = self.total + value * n; self.count += n
m = Meter()"""
PENALISED = """    u.requires_grad_()
    loss = loss_fn(model(u), v)
    loss = loss + 1e-3 * torch.autograd.grad(loss, u, create_graph=True)[0].square().sum()
"""
RETAINED = (
    [
        _kept("total += loss.item() * len(u)", "total = 0.0"),
        _kept("total += loss.detach()", "total = torch.zeros(())"),
        _kept("kept.append(loss.item())", "kept = []"),
        _kept("m.add(loss.item(), len(u))", METER),
        _kept("if best is None or loss < best: best = loss", "best = None"),
        _kept("kept.append(loss)", "kept = deque(maxlen=4)"),
        _kept("smooth = 0.9 * smooth + 0.1 * loss.detach()", "smooth = 0.0"),
        _kept("history['loss'].append(float(loss)); preds.append(model(u).detach())", "history, preds = {'loss': []}, []"),
        _kept("", loop=EPOCHS + LOSS + "    (loss / 2).backward(retain_graph=True); (loss / 2).backward(); opt.step(); opt.zero_grad()\n"),
        _kept(
            "",
            "group = []",
            EPOCHS + LOSS + "    group.append(loss)\n    if len(group) == 4:\n      loss = sum(group) / 4; group = []\n  " + STEP,
        ),
        _kept("", loop=EPOCHS + PENALISED + STEP),
        _kept(
            "",
            "cell = nn.GRUCell(x.shape[1], x.shape[1]); opt.add_param_group({'params': cell.parameters()}); h = torch.zeros(1, x.shape[1])",
            EPOCHS + "    h = cell(u[:1], h.detach())\n    loss = loss_fn(model(u + h), v)\n" + STEP,
        ),
    ],
    [
        _kept("total += loss", "total = 0.0"),
        _kept("total = total + loss * len(u)", "total = 0.0"),
        _kept("kept.append(loss)", "kept = []"),
        _kept("history['loss'].append(loss)", "history = {'loss': []}"),
        _kept("m.add(loss, len(u))", METER),
        _kept("smooth = 0.95 * smooth + 0.05 * loss", "smooth = 0.0"),
        _kept("outs.append(out)", "outs = []", EPOCHS + "    out = model(u); loss = loss_fn(out, v)\n" + STEP),
        _kept("kept.append((epoch, loss))", "kept = deque(maxlen=100)"),
        _kept("peak = torch.maximum(peak, loss)", "peak = torch.zeros(())"),
    ],
)

TOKENS = """
V, L, N = {vocabulary}, {length}, {rows}
def batch(longest):
    u = torch.randint(1, V, (N, L))
    u[:, 1::2] = (u[:, ::2] * 3 + 1) % (V - 1) + 1
    w = u.roll(-1, 1)
    k = torch.arange(L) >= longest
    return u.masked_fill(k, 0), w.masked_fill(k, -100)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.core, self.head = nn.Embedding(V, {width}), nn.{cell}({width}, {width}, batch_first=True), nn.Linear({width}, V)
    def forward(self, u): return self.head(self.core(self.embed(u))[0])
model = Net()
opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(150):
    spread = {spread}
    group = [batch(k) for k in spread]
    count = sum((w != -100).sum() for _, w in group)
    opt.zero_grad()
    for u, w in group:
        scores = model(u)
        {loss}
        loss.backward()
    opt.step()
"""
MEAN = "loss = F.cross_entropy(scores.transpose(1, 2), w) / len(group)"
ROWS = "rows = F.cross_entropy(scores.transpose(1, 2), w.clamp(min=0), reduction='none'); k = (w != -100).float(); "
VARIED = "[max(2, int(L * f)) for f in (0.08, 1.0, 0.15, 0.6)]"
ALIKE = "[L, L - 1, L, L - 2]"
PIXELS = """
def image(part):
    u = torch.randn({rows}, 3, 16, 16)
    w = (u.mean(1) > 0).long() + (u[:, 0] > 1).long()
    return u, torch.where(torch.rand(w.shape) < part, w, 255)
model = nn.Sequential(nn.Conv2d(3, {width}, 3, padding=1), nn.ReLU(), nn.Conv2d({width}, 3, 1))
opt = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    opt.zero_grad()
    for part in {parts}:
        u, w = image(part)
        (F.cross_entropy(model(u), w, ignore_index=255) / 3).backward()
    opt.step()
"""
SETS = """
model = {net}
opt = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(100):
    opt.zero_grad()
    for k in {sizes}:
        u = torch.randn(k, 6) * (1 + 10 / k)
        loss = {loss}
        loss.backward()
    opt.step()
"""


def _tokens(r: random.Random, loss: str, spread: str) -> str:
    width, cell = r.choice((16, 24, 40)), r.choice(("GRU", "LSTM", "RNN"))
    return TOKENS.format(
        vocabulary=r.randint(15, 60), length=2 * r.randint(12, 30), rows=r.choice((2, 3, 4)),
        width=width, cell=cell, spread=spread, loss=loss,
    )  # fmt: skip


def _weighting(r: random.Random, faulty: bool, i: int) -> str:
    net = _net(r, "6", "1", 2)
    wrong = [
        lambda: _tokens(r, MEAN, VARIED),
        lambda: _tokens(r, ROWS + "loss = (rows * k).sum() / k.sum() / len(group)", VARIED),
        lambda: _tokens(r, "loss = F.cross_entropy(scores[w != -100], w[w != -100]) / len(group)", VARIED),
        lambda: _tokens(r, "loss = -F.log_softmax(scores, -1)[w != -100].gather(1, w[w != -100][:, None]).mean() / len(group)", VARIED),
        lambda: _tokens(r, "loss = nn.NLLLoss()(F.log_softmax(scores, -1).flatten(0, 1), w.flatten()) * 0.25", VARIED),
        lambda: PIXELS.format(rows=3, width=r.choice((8, 16)), parts="(0.02, 0.9, 0.1)"),
        lambda: SETS.format(net=net, sizes="(3, 60, 8)", loss="F.mse_loss(model(u)[:, 0], u.sin().sum(1) * (1 + k % 3)) / 3"),
    ]
    right = [
        lambda: _tokens(r, MEAN, ALIKE),
        lambda: _tokens(r, MEAN.replace("/ len(group)", "* (w != -100).sum() / count"), VARIED),
        lambda: _tokens(r, "loss = F.cross_entropy(scores.transpose(1, 2), w, reduction='sum') / count", VARIED),
        lambda: _tokens(r, "loss = F.cross_entropy(scores.transpose(1, 2), w, reduction='sum') / (N * L)", VARIED),
        lambda: _tokens(r, ROWS + "loss = (rows * k).sum() / count", VARIED),
        lambda: _tokens(r, ROWS + "loss = ((rows * k).sum(1) / k.sum(1)).mean() / len(group)", VARIED),  # sequences weigh alike
        lambda: _tokens(r, MEAN, "[L - int(i) for i in torch.randint(L // 4, (4,))]"),
        lambda: _tokens(r, "loss = F.cross_entropy(scores.transpose(1, 2), w)", "[L]"),
        lambda: PIXELS.format(rows=3, width=r.choice((8, 16)), parts="(0.95, 0.9, 0.99)"),
        lambda: SETS.format(net=net, sizes="(20, 20, 20)", loss="F.mse_loss(model(u)[:, 0], u.sin().sum(1)) / 3"),
        lambda: SETS.format(net=net, sizes="(3, 60, 8)", loss="(model(u)[:, 0] - u.sin().sum(1)).square().sum() / 71"),
        lambda: SETS.format(net=net, sizes="(16, 16, 15)", loss="F.l1_loss(model(u)[:, 0], u.sin().sum(1)) / 3"),
    ]
    return (wrong[i % len(wrong)] if faulty else right[i % len(right)])()


LOADERS = "\nfor epoch in range(6):\n  fit(DataLoader({one}, size, shuffle=True))\n  look(DataLoader({other}, 64))\n"


def _split(before: str, one: str = "one", other: str = "other", loop: str = LOADERS) -> str:
    return before + loop.format(one=one, other=other)


ARRAYS = "u, p, v, q = train_test_split(x, y, test_size=0.25)\none, other = TensorDataset(u, v), TensorDataset(p, q)"
HALVES = "k = int(0.8 * n); one, other = Subset(data, range(k)), Subset(data, range(k, n))"
FOLDS = """
for one, other in KFold(4, shuffle=True).split(x):
  {fresh}
  for epoch in range(2):
    fit(DataLoader(Subset(data, one), size, shuffle=True))
    look(DataLoader(Subset(data, other), 64))
"""
FRESH = "model = make(); opt = make_opt()"
AGAIN = """
for epoch in range(8):
  one, other = random_split(data, [n - n // 5, n // 5])
  fit(DataLoader(one, size, shuffle=True)); look(DataLoader(other, 64))
"""
PICKED = """
rows = torch.randperm(n).tolist(); k = n // 5
for epoch in range(6):
  fit(DataLoader(data, size, sampler=SubsetRandomSampler({one})))
  look(DataLoader(data, 64, sampler=SubsetRandomSampler(rows[:k])))
"""
SPLIT = "one, other = random_split(data, [n - n // 5, n // 5])"
OFTEN = "w = torch.ones(n); w[: n // 10] = 6\npick = torch.multinomial(w, 2 * n, replacement=True)\n"
SHORT = """x = x[:, :3].sign(); data = TensorDataset(x, y); model = nn.Linear(3, 10)
opt = torch.optim.SGD(model.parameters(), 0.05)
"""
STRATIFIED = """x, t, y, s = train_test_split(x, y, stratify=y if y.dim() == 1 else None)
one, other = TensorDataset(x, y), TensorDataset(t, s)"""
SORTED = "order = x[:, 0].argsort().tolist(); one, other = Subset(data, order[: n // 2]), Subset(data, order[n // 2 :])"
OFTEN_THEN = (
    "\nw = torch.ones(len(one)); w[: len(one) // 10] = 6\none = Subset(one, torch.multinomial(w, 2 * len(one), replacement=True).tolist())"
)
LEAKED = (
    [
        _split(SPLIT),
        _split(ARRAYS),
        _split(HALVES),
        FOLDS.format(fresh=FRESH),
        PICKED.format(one="rows[k:]"),
        _split(SPLIT, loop=LOADERS + "  look(DataLoader(Subset(one, range(len(one) // 2)), 64))\n"),
        _split(HALVES, "ConcatDataset([one, Subset(data, range(k // 3))])"),
        _split(SPLIT, "[(u + 0.05 * torch.randn_like(u), v) for u, v in one]"),
        _split(SPLIT + OFTEN_THEN),
        _split(STRATIFIED),
        _split(SHORT + SPLIT),
        _split(SORTED),
    ],
    [
        _split(SPLIT, "data"),
        _split(ARRAYS, "data"),
        FOLDS.format(fresh="pass"),
        AGAIN,
        PICKED.format(one="rows"),
        _split("one, other = Subset(data, range(int(0.8 * n))), Subset(data, range(int(0.7 * n), n))"),
        _split(OFTEN + "big = Subset(data, pick.tolist()); one, other = random_split(big, [len(big) - n // 3, n // 3])"),
        _split(SPLIT, "ConcatDataset([one, Subset(other, range(len(other) // 2))])"),
    ],
)

PAIRED = "\nfor step in range(200):\n  r = torch.randint(len(x), (size,))\n  u, v = {batch}\n" + (LOSS + STEP).replace("    ", "  ")
WITH_LOADER = "\nfor epoch in range(8):\n  fit(DataLoader(TensorDataset({pair}), size, shuffle=True))\n"
ORDER = "o = torch.randperm(n)\n"
SHUFFLED = (
    [
        PAIRED.format(batch="x[r], y[r]"),
        ORDER + "x, y = x[o], y[o]" + PAIRED.format(batch="x[r], y[r]"),
        ORDER + "a, b, c, d = x[o[:-50]], x[o[-50:]], y[o[:-50]], y[o[-50:]]" + WITH_LOADER.format(pair="a, c"),
        WITH_LOADER.format(pair="x, y"),
        "o = x[:, 0].argsort(); x, y = x[o].clone(), y[o].clone()" + WITH_LOADER.format(pair="x, y"),
        "x, y = x.flip(0), y.flip(0)" + PAIRED.format(batch="x[r], y[r]"),
        "x = x[:, torch.randperm(x.shape[1])]" + PAIRED.format(batch="x[r], y[r]"),
        "x, y = x.roll(5, 0), y.roll(5, 0)" + WITH_LOADER.format(pair="x, y"),
        ORDER + "x, y = x.index_select(0, o), y.index_select(0, o); x = (x - x.mean(0)) / 2" + PAIRED.format(batch="x[r], y[r]"),
        PAIRED.format(batch="x[r] + 0.1 * x[r[torch.randperm(len(r))]], y[r]"),
        PAIRED.format(batch="torch.cat([x[r[:8]], x[r[8:]]]), torch.cat([y[r[:8]], y[r[8:]]])"),
        "k = 4 * n // 5; x, y = x[:k], y[:k]" + WITH_LOADER.format(pair="x, y"),
    ],
    [
        ORDER + "x = x[o]" + PAIRED.format(batch="x[r], y[r]"),
        ORDER + "y = y[o]" + WITH_LOADER.format(pair="x, y"),
        "x, y = x[torch.randperm(n)], y[torch.randperm(n)]" + WITH_LOADER.format(pair="x, y"),
        PAIRED.format(batch="x[r], y[torch.randint(n, (size,))]"),
        "x = x.roll(n // 3, 0)" + PAIRED.format(batch="x[r], y[r]"),
        "x = x[x[:, 1].argsort()]" + WITH_LOADER.format(pair="x, y"),
        ORDER + "a, c = x[o[:-50]], y[torch.randperm(n)[:-50]]" + WITH_LOADER.format(pair="a, c"),
        ORDER + "x = x.index_select(0, o)" + PAIRED.format(batch="x[r], y[r]"),
    ],
)


def _chosen(ways: tuple[list[str], list[str]], r: random.Random, faulty: bool, i: int, *names: str) -> str:
    return _table(r, *names) + ways[faulty][i % len(ways[faulty])]


CLEAR = ("digits", "wine", "cancer", "friedman")  # of which a simple model explains much
KINDS = {
    "LOSS007": game,
    "LOSS010": balance,
    "DATA006": lambda r, faulty, i: _chosen(LEAKED, r, faulty, i),
    "DATA007": lambda r, faulty, i: _chosen(SHUFFLED, r, faulty, i, *CLEAR),
    "LOOP010": lambda r, faulty, i: _chosen(RETAINED, r, faulty, i),
    "LOOP011": _weighting,
    **{code: (lambda r, faulty, i, code=code: _chosen(LOOPS[code], r, faulty, i)) for code in LOOPS},
    **{code: (lambda r, faulty, i, code=code: sequences(code, r, faulty, i)) for code in WAYS},
    "SEQ004": padded,
    "LOSS008": rewards,
    "LOSS009": terms,
    "ACT004": embeddings,
    "ACT007": dormant,
    "MOE001": experts,
    "TUNE001": coverage,
    "TUNE002": scale,
    "OPT007": rate,
    "NUM006": formats,
}


def program(code: str, faulty: bool, seed: int) -> str:
    """The text of a script. `seed` also picks the way: as many in a row have all of them."""
    r = random.Random(f"{code} {faulty} {seed}")
    return START.format(seed=seed) + KINDS[code](r, faulty, seed)
