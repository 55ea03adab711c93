"""Training scripts, run and judged: the samples, other spellings of the same faults, and healthy scripts of many kinds."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from sample_models.catalogue import README, Sample, read
from tests.scripts import DATA, LOOP, codes, complaints, scan, written
from tests.test_sample_models import changed_lines

SCRIPTS = README.parent / "scripts"
FAULTY = [read(path) for path in sorted((SCRIPTS / "faulty").glob("*.py"))]
faulty = pytest.mark.parametrize("sample", FAULTY, ids=lambda s: s.path.stem)


def twin(sample: Sample) -> Path:
    return SCRIPTS / "healthy" / sample.path.name


# ----------------------------------------------------------------- the samples


@faulty
def test_twins_differ_by_one_line(sample):
    removed, added = changed_lines(sample.path.read_text(encoding="utf-8"), twin(sample).read_text(encoding="utf-8"))
    assert removed <= 1 and added <= 1 and removed + added >= 1


@faulty
def test_a_scan_finds_what_is_wrong_with_the_loop(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports = scan(sample.path)
    found = {(f.name, f.code, f.severity) for r in reports for f in r.findings}
    assert {(e.name, e.code, e.severity) for e in sample.expected} <= found
    headline = next(f for r in reports for f in r.headlines if f.code == sample.expected[0].code)
    assert headline.location is not None and Path(headline.location.path).name == sample.path.name


@faulty
def test_a_scan_leaves_the_healthy_twin_in_peace(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaints(scan(twin(sample))) == []
    assert list(tmp_path.iterdir()) == []


def test_every_script_has_its_twin_and_stands_in_the_readme():
    assert {p.name for p in (SCRIPTS / "healthy").glob("*.py")} == {s.path.name for s in FAULTY}
    text = README.read_text(encoding="utf-8")
    assert all(f"scripts/faulty/{s.path.name}" in text for s in FAULTY) and len(FAULTY) >= 8


# ------------------------------------------------------------ what cannot be repeated

COUNTING = """
calls = []
class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, x):
        calls.append(1)
        return self.inner(x) * (1 + STEP * len(calls))
model = Counting(model)
"""
REMEMBERING = """
class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept, self.cell, self.head = {}, nn.GRUCell(32, 16), nn.Linear(16, 10)
    def forward(self, rows):
        x = torch.stack([self.kept.get(int(i), torch.zeros(32)) for i in rows])
        return self.head(self.cell(x, torch.zeros(len(rows), 16)))
model = Remembering()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(40):
    rows = torch.randint(64, (16,))
    loss = F.cross_entropy(model(rows), labels[rows])
    model.kept.update({int(i): inputs[i] for i in rows})
    optimizer.zero_grad(); loss.backward(); optimizer.step()
"""
LATER = """
class Later(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept, self.cell, self.first, self.head = None, nn.GRUCell(32, 16), nn.Linear(32, 16), nn.Linear(16, 10)
    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.head(h if self.kept is None else self.cell(self.kept, h))
model = Later()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(40):
    rows = torch.randint(64, (16,))
    loss = F.cross_entropy(model(inputs[rows]), labels[rows])
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    model.kept = inputs[rows]
"""
UNREPEATABLE = {
    "the model calls a layer on what the loop remembers": LATER,
    "the model reads what the loop remembers": REMEMBERING,
    "a gradient is given": LOOP.replace("loss.backward()", "loss.expand(2).backward(torch.full((2,), 0.5))"),
    "the loss depends on how often it was computed": COUNTING.replace("STEP", "0.1") + LOOP,
}


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_a_training_that_cannot_be_repeated_is_judged_in_part(tmp_path, name):
    (report,) = scan(written(tmp_path, DATA + UNREPEATABLE[name]))
    part = report.coverage
    assert part.in_part and report.exit_code() == 2 and part.looked < 10 < part.applicable
    (reason,) = part.reasons
    assert reason.startswith("could not repeat the training step: ") and "Error" not in reason
    (remedy,) = part.remedies
    assert "gradcheck watch -- python " in remedy and str(tmp_path) in remedy
    assert {s.code for s in report.rules if s.status == "passed"} >= {"GRAPH001", "GRAPH003", "GRAPH006", "LOOP003", "LOOP005"}
    assert {s.code: s.status for s in report.rules}["GRAPH002"] == "not-measured", "only what the steps showed is passed"


def test_the_same_script_that_can_be_repeated_is_judged_in_full(tmp_path):
    (report,) = scan(written(tmp_path, DATA + COUNTING.replace("STEP", "0") + LOOP))
    assert not report.coverage.in_part and report.exit_code() == 0


# --------------------------------------------------------------- other spellings

FAULTS = {
    "gradients cleared before the step": (
        "GRAPH006",
        LOOP.replace("        optimizer.step", "        model.zero_grad()\n        optimizer.step"),
    ),
    "optimizer before the model was changed": ("GRAPH003", "model[3] = nn.Linear(64, 10)" + LOOP),
    "optimizer of a model that was copied": ("GRAPH003", "import copy\nmodel = copy.deepcopy(model)" + LOOP),
    "forward pass without gradient": (
        "GRAPH001",
        LOOP.replace(
            "loss = F.cross_entropy(model(x), y)", "with torch.no_grad(): o = model(x)\n        loss = F.cross_entropy(o, y)"
        ).replace("loss.backward()", "loss.requires_grad_().backward()"),
    ),
    "clipping of an iterator that is used up": (
        "LOOP002",
        "weights = model.parameters(); optimizer = torch.optim.Adam(weights, 2e-3)"
        + LOOP.replace("        optimizer.step", "        nn.utils.clip_grad_norm_(weights, 1.0); optimizer.step"),
    ),
    "clipping before the backward pass": (
        "LOOP002",
        LOOP.replace("        loss.backward()", "        nn.utils.clip_grad_norm_(model.parameters(), 1.0); loss.backward()"),
    ),
    "clipping of another model": (
        "LOOP002",
        "other = net()"
        + LOOP.replace("        optimizer.step", "        nn.utils.clip_grad_norm_(other.parameters(), 1.0); optimizer.step"),
    ),
    "evaluation mode from the start": ("LOOP003", "model.insert(1, nn.BatchNorm1d(64)); model.eval()" + LOOP),
    "a rate that explodes": (
        "LOOP004",
        "schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1.5)"
        + LOOP.replace("optimizer.step()", "optimizer.step(); schedule.step()"),
    ),
    "a batch from before the loop": ("LOOP005", "x, y = next(iter(loader))" + LOOP.replace("for x, y in loader:", "for _ in range(8):")),
    "a slice that does not move": (
        "LOOP005",
        "x, y = inputs[:32], labels[:32]" + LOOP.replace("for x, y in loader:", "for _ in range(8):"),
    ),
    "accumulation divided by another number": (
        "LOOP006",
        LOOP.replace("for x, y in loader:", "for i, (x, y) in enumerate(loader, 1):")
        .replace("        optimizer.zero_grad()\n", "")
        .replace("loss = F.cross_entropy(model(x), y)", "loss = F.cross_entropy(model(x), y) / 8")
        .replace("        optimizer.step()", "        if i % 2 == 0:\n            optimizer.step(); optimizer.zero_grad()"),
    ),
    "a scaled loss and a plain step": (
        "LOOP007",
        "scaler = torch.amp.GradScaler('cpu')" + LOOP.replace("loss.backward()", "scaler.scale(loss).backward()"),
    ),
    "a scaler without update": (
        "LOOP007",
        "scaler = torch.amp.GradScaler('cpu')"
        + LOOP.replace("loss.backward()", "scaler.scale(loss).backward()").replace("optimizer.step()", "scaler.step(optimizer)"),
    ),
    "targets that broadcast": (
        "LOSS002",
        "model[3] = nn.Linear(64, 1); optimizer = torch.optim.Adam(model.parameters(), 2e-3)"
        + LOOP.replace("F.cross_entropy(model(x), y)", "F.mse_loss(model(x), y.float())"),
    ),
    "labels beyond the last class": (
        "LOSS002",
        "model[3] = nn.Linear(64, 9); optimizer = torch.optim.Adam(model.parameters(), 2e-3)" + LOOP,
    ),
    "an update by hand at a rate of two hundred": (
        "OPT001",
        LOOP.replace("optimizer.zero_grad()", "model.zero_grad()").replace(
            "optimizer.step()", "for p in model.parameters(): p.data.add_(p.grad, alpha=-200.0)"
        ),
    ),
    "an update by hand with the wrong sign": (
        "GRAPH004",
        LOOP.replace("optimizer.zero_grad()", "model.zero_grad()").replace(
            "optimizer.step()", "for p in model.parameters(): p.data += 0.1 * p.grad"
        ),
    ),
    "an update by hand of gradients that are never cleared": (
        "GRAPH006",
        LOOP.replace("        optimizer.zero_grad()\n", "").replace(
            "optimizer.step()", "for p in model.parameters(): p.data.add_(p.grad, alpha=-0.05)"
        ),
    ),
    "an optimizer made in the loop": (
        "LOOP009",
        LOOP.replace("optimizer.zero_grad()", "optimizer = torch.optim.Adam(model.parameters(), 2e-3); optimizer.zero_grad()"),
    ),
    "a rate of a hundred": ("OPT001", "optimizer = torch.optim.SGD(model.parameters(), 100.0)" + LOOP),
}

HEALTHY = {
    "plain": LOOP,
    "a warm-up from zero": "schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / 20))"
    + LOOP.replace("optimizer.step()", "optimizer.step(); schedule.step()"),
    "one cycle": "schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=64)"
    + LOOP.replace("optimizer.step()", "optimizer.step(); schedule.step()"),
    "frozen body in evaluation mode": """
        body, head = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2)), nn.Linear(64, 10)
        body.requires_grad_(False)
        body.eval()
        optimizer = torch.optim.Adam(head.parameters(), 1e-2)
        for epoch in range(8):
            for x, y in loader:
                loss = F.cross_entropy(head(body(x)), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        """,
    "all data in each step": LOOP.replace("for x, y in loader:", "for x, y in [(inputs, labels)] * 5:"),
    "gradients set to None by hand": LOOP.replace("        optimizer.zero_grad()", "        for p in model.parameters(): p.grad = None"),
    "clearing at the end": LOOP.replace("        optimizer.zero_grad()\n", "").replace(
        "optimizer.step()", "optimizer.step(); optimizer.zero_grad()"
    ),
    "half precision": LOOP.replace(
        "loss = F.cross_entropy(model(x), y)", "with torch.autocast('cpu', torch.bfloat16): loss = F.cross_entropy(model(x), y)"
    ),
    "validation": LOOP + "    model.eval()\n    with torch.no_grad(): print(F.cross_entropy(model(inputs), labels))\n    model.train()\n",
    "two losses of one step": LOOP.replace(
        "loss.backward()", "loss.backward(retain_graph=True)\n        (1e-3 * sum(p.abs().sum() for p in model.parameters())).backward()"
    ),
    "actor and critic": """
        actor, critic = nn.Linear(32, 2), nn.Linear(32, 1)
        of_actor, of_critic = torch.optim.Adam(actor.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-2)
        for step in range(60):
            states = torch.randn(64, 32)
            choice = torch.distributions.Categorical(logits=actor(states))
            action = choice.sample()
            reward = ((states[:, 0] > 0) == (action == 1)).float()
            value = critic(states).squeeze(1)
            policy_loss = -(choice.log_prob(action) * (reward - value).detach()).mean()
            of_actor.zero_grad(); policy_loss.backward(); of_actor.step()
            of_critic.zero_grad(); F.mse_loss(value, reward).backward(); of_critic.step()
        """,
    "LBFGS": """
        model = nn.Linear(32, 10)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        def closure():
            optimizer.zero_grad(); loss = F.cross_entropy(model(inputs), labels); loss.backward(); return loss
        for step in range(10): optimizer.step(closure)
        """,
    "an update by hand": LOOP.replace("        optimizer.zero_grad()", "        model.zero_grad()").replace(
        "optimizer.step()", "for p in model.parameters(): p.data.add_(p.grad, alpha=-0.2)"
    ),
    "tensors of no module": """
        w = torch.zeros(32, 10, requires_grad=True)
        for step in range(200):
            loss = F.cross_entropy(inputs @ w, labels)
            loss.backward()
            with torch.no_grad():
                w -= 0.5 * w.grad
                w.grad.zero_()
        """,
    "compiled, with workers": "model = torch.compile(model)\nloader = DataLoader(TensorDataset(inputs, labels), 64, True, num_workers=1)"
    + LOOP,
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own words about the faults
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_script_gets_its_code(name, tmp_path):
    code, text = FAULTS[name]
    assert code in codes(scan(written(tmp_path, DATA + textwrap.dedent(text))))


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_script_gets_neither_error_nor_warning(name, tmp_path):
    assert complaints(scan(written(tmp_path, DATA + textwrap.dedent(HEALTHY[name])))) == []


def test_all_that_a_script_trains_is_replayed(tmp_path):
    """None of the healthy scripts is judged by what it showed alone."""
    (report,) = scan(written(tmp_path, DATA + LOOP))
    assert len(report.layers) == 5 and report.measurement.loop is not None and report.measurement.loop.steps == 64
    assert report.measurement.probe.losses[0] == pytest.approx(report.measurement.loop.losses[0], rel=0.1)  # but for the dropout
