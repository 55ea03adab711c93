"""Scripts whose schedule is wrong, and those that only look so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_scripts_causes import check, findings

SCHEDULED = """
model = nn.Linear(8, 3)
loader = DataLoader(TensorDataset(torch.randn(48, 8), torch.randint(3, (48,))), batch_size=8)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
EPOCHS = 5
scheduler = MADE
def train_one_epoch():
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        INNER
for epoch in range(EPOCHS):
    train_one_epoch()
    OUTER
"""
CYCLE, COSINE = "OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * len(loader))", "CosineAnnealingLR(optimizer, T_max=EPOCHS)"
WARM = "LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / (EPOCHS * len(loader))))"


@pytest.mark.parametrize(("made", "wrong"), [(CYCLE, "OUTER"), (COSINE, "INNER"), (WARM, "OUTER")])
def test_a_schedule_that_is_stepped_in_the_wrong_loop(made, wrong, tmp_path):
    text = SCHEDULED.replace("MADE", f"torch.optim.lr_scheduler.{made}")
    right = "INNER" if wrong == "OUTER" else "OUTER"
    faulty = text.replace(wrong, "scheduler.step()  # here").replace(right, "pass")
    check(tmp_path, faulty, text.replace(right, "scheduler.step()").replace(wrong, "pass"), "LOOP013", "warning", "LOOP013", "LOOP004")


@pytest.mark.parametrize(("wrong", "codes"), [("OUTER", ["LOOP013"]), ("INNER", [])])
def test_a_schedule_that_is_made_in_the_first_epoch(wrong, codes, tmp_path):
    lazily = f"    if scheduler is None:\n        scheduler = torch.optim.lr_scheduler.{CYCLE}\n    train_one_epoch()"
    text = SCHEDULED.replace("MADE", "None").replace("    train_one_epoch()", lazily).replace(wrong, "scheduler.step()")
    found = findings(tmp_path, text.replace("INNER", "pass").replace("OUTER", "pass"), "LOOP013")
    assert [f.code for f in found] == codes


SWEPT = """
data = TensorDataset(torch.randn(48, 8), torch.randint(3, (48,)))
def train(lr):
    model = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    scheduler = torch.optim.lr_scheduler.MADE
    TRAINED
RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
for lr in RATES:
    train(lr)
"""
STEPS = """for step in range(100):
        x, y = data[torch.randint(48, (8,))]
        LOSS
        scheduler.step()"""
EPOCHS = """for epoch in range(5):
        for x, y in DataLoader(data, 8):
            LOSS
            INNER
        OUTER"""
LOSS = "loss = F.cross_entropy(model(x), y); optimizer.zero_grad(); loss.backward(); optimizer.step()"


@pytest.mark.parametrize(
    ("made", "trained", "told"),
    [
        ("StepLR(optimizer, 10, 0.5)", STEPS, False),
        ("CosineAnnealingLR(optimizer, 10)", STEPS, False),
        ("CosineAnnealingLR(optimizer, 5)", EPOCHS.replace("INNER", "pass"), False),
        ("CosineAnnealingLR(optimizer, 5)", EPOCHS.replace("OUTER", "pass"), True),
        ("OneCycleLR(optimizer, 0.1, total_steps=30)", EPOCHS.replace("INNER", "pass"), True),
        ("OneCycleLR(optimizer, 0.1, total_steps=30)", EPOCHS.replace("OUTER", "pass"), False),
    ],
)
def test_the_turns_of_a_sweep_are_no_epochs(made, trained, told, tmp_path):
    for name, text in (("OUTER", "scheduler.step()"), ("INNER", "scheduler.step()"), ("LOSS", LOSS)):
        trained = trained.replace(name, text)
    found = findings(tmp_path, SWEPT.replace("MADE", made).replace("TRAINED", trained), "LOOP013")
    assert [f.code for f in found] == ["LOOP013"] * told


PLATEAU = """
x = torch.randn(256, 8)
y = (x @ torch.randn(8, 4)).argmax(1)
net = nn.Linear(8, 4)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)  # here
for epoch in range(6):
    for _ in range(8):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step((net(x).argmax(1) == y).float().mean())
"""


def test_a_plateau_scheduler_that_takes_accuracy_for_a_loss(tmp_path: Path) -> None:
    check(tmp_path, PLATEAU, PLATEAU.replace("optimizer, patience", "optimizer, 'max', patience"), "LOOP004", "warning", steps=48)


SEARCH = """
net = nn.Linear(8, 3)
x = torch.randn(64, 8)
y = x[:, :3].argmax(1)
found = copy.deepcopy(net)
optimizer = torch.optim.SGD(found.parameters(), 1e-5)
for step in range(30):
    optimizer.zero_grad()
    F.cross_entropy(found(x), y).backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] *= 1.6
optimizer = torch.optim.SGD(net.parameters(), 0.5)
for step in range(AFTER):
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
"""


@pytest.mark.parametrize(("after", "expected"), [(40, []), (0, ["LOOP004"])])
def test_a_search_for_the_rate_foretells_nothing_of_what_is_over(tmp_path, after, expected):
    assert [f.code for f in findings(tmp_path, SEARCH.replace("AFTER", str(after)), "LOOP004", steps=100)] == expected
