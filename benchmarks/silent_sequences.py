"""More random training scripts, of sequences and of what a loop keeps beside its model: see silent_programs.py."""

from __future__ import annotations

import random

NET = """
V, L, D = {vocabulary}, {length}, {width}
class Core(nn.Module):
    def __init__(self):
        super().__init__()
        {made}
    def forward(self, h, real=None):
        {run}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places, self.core = nn.Embedding(V, D), nn.Embedding(L + 2, D), Core()
        self.head = nn.Linear(D, {outputs})
    def forward(self, t, real=None):
        h = self.embed(t) + self.places(torch.arange(t.shape[1]))
        return self.head(h + self.core(h, real))
model = Net()
opt = torch.optim.AdamW(model.parameters(), lr={rate})
def sample(rows={rows}):
    t = torch.randint(1, V, (rows, L + 2))
    t[:, 1::2] = (t[:, ::2][:, : t[:, 1::2].shape[1]] * 3 + 1) % (V - 1) + 1
    return t
for step in range(150):
    {batch}
    scores = model(x)
    {loss}
    opt.zero_grad(); loss.backward(); opt.step()
"""
ATTENTION = ("self.mix = nn.Linear(D, 3 * D)", "return F.scaled_dot_product_attention(*self.mix(h).chunk(3, -1), {})")
HEADS = (
    "self.mix = nn.MultiheadAttention(D, 2, batch_first=True)",
    "T = h.shape[1]; return self.mix(h, h, h, attn_mask={}, need_weights=False)[0]",
)
RECURRENT = ("self.mix = nn.{}(D, D{}, batch_first=True{})", "return self.mix(h)[0]")
CONVOLUTION = ("self.mix = nn.Conv1d(D, D, 3)", "return self.mix(F.pad(h.transpose(1, 2), {})).transpose(1, 2)")
MEANS = ("pass", "return h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None]")
LATER = "torch.ones(T, T, dtype=torch.bool).triu(1)"


def _filled(core: tuple[str, str], *words: str) -> tuple[str, str]:
    made, run = core
    count = made.count("{}")
    return made.format(*words[:count]), run.format(*words[count:])


CAUSAL = (
    _filled(ATTENTION, "is_causal=True"),
    _filled(HEADS, LATER),
    _filled(RECURRENT, "GRU", "", ""),
    _filled(RECURRENT, "LSTM", "", ""),
    _filled(CONVOLUTION, "(2, 0)"),
    MEANS,
)
OPEN = (
    _filled(ATTENTION, ""),
    _filled(HEADS, "None"),
    _filled(RECURRENT, "GRU", " // 2", ", bidirectional=True"),
    _filled(CONVOLUTION, "(1, 1)"),
    ("pass", "return h.mean(1, keepdim=True).expand_as(h)"),
    _filled(HEADS, LATER.replace("triu(1)", "triu(2)")),
)
NEXT = "t = sample(); x, y = t[:, :-1], t[:, 1:]"
SAME = "x = sample(); y = x"
SKIP = "t = sample(); x, y = t[:, :-2], t[:, 2:]"
TAGS = "x = sample(); y = (x + x.roll(1, 1)) % V"
HIDDEN = "y = sample(); k = torch.rand(y.shape) < 0.2; x = y.masked_fill(k, 0); y = y.masked_fill(~k, -100)"
PROMPTS = "t = sample(); x, y = t[:, :-1], t[:, 1:].clone(); y[:, : L // 3] = -100"
CUT = "t = sample(); x, y = t[:, :-1], t[:, 1:].clone(); y[torch.rand(len(y)) < {}] = -100; y[0] = t[0, 1:]"
NOTHING = "t = sample(); x, y = t[:, :-1], torch.full_like(t[:, 1:], -100)"
TURNED = "t = sample(); x, y = t[:, :-1], t[:, 1:].masked_fill(t[:, 1:] != 0, -100)"
ENTROPY = "loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())"
MANUAL = "loss = -(F.log_softmax(scores, -1) * F.one_hot(y, V)).sum(-1).mean()"
PICKED = "loss = -F.log_softmax(scores, -1).gather(-1, y[..., None]).mean()"
SAFE = "loss = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction='sum') / (y != -100).sum().clamp(min=1)"
WAYS = {  # by rule: healthy and faulty, each as cores, batches and losses to choose from
    "SEQ001": (
        [(CAUSAL, (NEXT,), (ENTROPY, MANUAL, PICKED)), (OPEN, (TAGS, HIDDEN), (ENTROPY,)), (CAUSAL, (PROMPTS,), (ENTROPY,))],
        [(OPEN, (NEXT,), (ENTROPY, MANUAL, PICKED)), (OPEN, (PROMPTS,), (ENTROPY, SAFE))],
    ),
    "SEQ002": (
        [(CAUSAL, (NEXT, PROMPTS), (ENTROPY,)), (OPEN + CAUSAL, (TAGS,), (ENTROPY, PICKED)), (OPEN, (HIDDEN,), (ENTROPY,))],
        [(CAUSAL, (SAME,), (ENTROPY, MANUAL, PICKED)), (CAUSAL, (SKIP,), (ENTROPY, PICKED))],
    ),
    "SEQ003": (
        [(CAUSAL, (NEXT, PROMPTS), (ENTROPY, SAFE)), (OPEN, (HIDDEN,), (ENTROPY,)), (CAUSAL, (CUT.format(0.1),), (ENTROPY,))],
        [(CAUSAL, (NOTHING, TURNED), (ENTROPY, SAFE)), (CAUSAL, (CUT.format(0.7),), (ENTROPY,))],
    ),
}


def sequences(code: str, r: random.Random, faulty: bool, i: int) -> str:
    cores, batches, losses = (ways := WAYS[code][faulty])[i % len(ways)]
    vocabulary = r.randint(20, 60)
    made, run = r.choice(cores)
    return NET.format(
        vocabulary=vocabulary, length=2 * r.randint(8, 20), width=r.choice((16, 32, 48)), rate=r.choice((1e-3, 3e-3)), made=made, run=run,
        rows=r.choice((8, 16)), batch=r.choice(batches), loss=r.choice(losses), outputs="V",
    )  # fmt: skip


READER = """
class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding({vocabulary}, {width}, padding_idx=0), nn.Linear({width}, 3)
        self.rnn = nn.{cell}({width}, {width}, batch_first=True)
        self.attend = nn.MultiheadAttention({width}, 2, batch_first=True)
    def forward(self, t, lengths):
        x, real = self.embed(t), t != 0
        {read}
model = Reader()
opt = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(150):
    longest = int(torch.randint(10, 24, ()))
    lengths = torch.randint(3, longest + 1, ({rows},)); lengths[0] = longest
    t = torch.randint(1, {vocabulary}, ({rows}, longest)).masked_fill(torch.arange(longest) >= lengths[:, None], 0)
    y = t[:, 0] % 3
    loss = F.cross_entropy(model(t, lengths), y)
    opt.zero_grad(); loss.backward(); opt.step()
"""
PACK = "nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)"
LAST = "out = self.rnn(x)[0]; return self.head(out[torch.arange(len(x)), lengths - 1])"
READS = (
    (
        f"h = self.rnn({PACK})[1]; return self.head(h[0][-1] if isinstance(h, tuple) else h[-1])",
        LAST,
        "return self.head((x * real[..., None]).sum(1) / lengths[:, None])",
        "return self.head(x.masked_fill(~real[..., None], -1e9).amax(1))",
        "return self.head(self.attend(x, x, x, key_padding_mask=~real, need_weights=False)[0][:, 0])",
        "w = x[..., 0].masked_fill(~real, -1e9).softmax(1); return self.head((w[..., None] * x).sum(1))",
        "return self.head(self.rnn(x)[0].masked_fill(~real[..., None], 0).sum(1) / lengths[:, None])",
    ),
    (
        "return self.head(self.rnn(x)[0][:, -1])",
        "return self.head(self.rnn(x)[0].mean(1))",
        "return self.head(x.mean(1))",
        "return self.head(self.attend(x, x, x, need_weights=False)[0][:, 0])",
        "w = x[..., 0].softmax(1); return self.head((w[..., None] * x).sum(1))",
    ),
)


def padded(r: random.Random, faulty: bool, i: int) -> str:
    reads = READS[faulty]
    return READER.format(
        vocabulary=r.randint(15, 40), width=r.choice((16, 24, 32)), cell=r.choice(("GRU", "LSTM")), rows=r.choice((16, 24)),
        read=reads[i % len(reads)],
    )  # fmt: skip


FIT = "    loss = loss_fn(model(u), v)\n    opt.zero_grad(); loss.backward(); opt.step()\n"
EPOCHS = "for epoch in range(12):\n  for u, v in DataLoader(data, size, shuffle=True):\n"
PER_BATCH, PER_EPOCH = EPOCHS + FIT + "    sched.step()\n", EPOCHS + FIT + "  sched.step()\n"
COUNT = "per = -(-n // size)\n"
SCHEDULES = "torch.optim.lr_scheduler."
CYCLE = f"sched = {SCHEDULES}OneCycleLR(opt, 0.01, epochs=12, steps_per_epoch=per)\n"
COSINE = f"sched = {SCHEDULES}CosineAnnealingLR(opt, {{}})\n"
WARM = f"sched = {SCHEDULES}LambdaLR(opt, lambda s: min(1.0, (s + 1) / ({{}})))\n"
NORMED = """import copy
model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, model[-1].out_features))
opt = make_opt()
"""
EMA = """from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9){})
"""
SHOWN = "  ema.eval(); look_at = loss_fn(ema(x), y).item()\n"
FOLLOW = """    with torch.no_grad():
      for p, q in zip(ema.parameters(), model.parameters()): p.lerp_(q, 0.1)
"""
BUFFERS = "      for p, q in zip(ema.buffers(), model.buffers()): p.copy_(q)\n"
FOLDS = """for fold in range(4):
  model = make(); opt = make_opt()
  for epoch in range(2):
    fit(DataLoader(Subset(data, range(fold, n, 4)), size))
"""
THAW = """for p in model[0].parameters(): p.requires_grad_(False)
for epoch in range(8):
  if epoch == 3: [p.requires_grad_() for p in model.parameters()]; opt = make_opt()
  fit(DataLoader(data, size, shuffle=True))
"""
UPDATE = """def update(u, v):
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = loss_fn(model(u), v)
    loss.backward(); opt.step(); opt.zero_grad()
"""
LOOPS = {
    "LOOP009": (
        [
            EPOCHS + FIT,
            FOLDS,
            EPOCHS + FIT + "  if epoch == 5: opt = make_opt()\n",
            THAW,
        ],
        [
            EPOCHS + "    opt = torch.optim.Adam(model.parameters(), lr=1e-3)\n" + FIT,
            UPDATE + EPOCHS + "    update(u, v)\n",
            EPOCHS + "    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)\n" + FIT,
        ],
    ),
    "LOOP012": (
        [
            NORMED + EMA.format(", use_buffers=True") + EPOCHS + FIT + "    ema.update_parameters(model)\n" + SHOWN,
            NORMED + "ema = copy.deepcopy(model)\n" + EPOCHS + FIT + FOLLOW + BUFFERS + SHOWN,
            "import copy\nema = copy.deepcopy(model)\n" + EPOCHS + FIT + FOLLOW + SHOWN,
            EMA.format("") + EPOCHS + FIT + "    ema.update_parameters(model)\n" + SHOWN,
            NORMED + EMA.format("") + EPOCHS + FIT + "    ema.update_parameters(model)\n" + SHOWN,  # it keeps its buffers in step
        ],
        [
            NORMED + EMA.format("") + EPOCHS + FIT + FOLLOW + SHOWN,
            NORMED + "ema = copy.deepcopy(model)\n" + EPOCHS + FIT + FOLLOW + SHOWN,
        ],
    ),
    "LOOP013": (
        [
            COUNT + CYCLE + PER_BATCH,
            COSINE.format("12") + PER_EPOCH,
            COUNT + COSINE.format("12 * per") + PER_BATCH,
            COUNT + WARM.format("per") + PER_BATCH,
            f"sched = {SCHEDULES}StepLR(opt, 4, 0.5)\n" + PER_EPOCH,
        ],
        [COUNT + CYCLE + PER_EPOCH, COSINE.format("12") + PER_BATCH, COUNT + WARM.format("100 * per") + PER_BATCH],
    ),
}  # fmt: skip
