"""Scripts with one fault that has several consequences: one finding names it, at its line, and the others are told under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_script
from gradcheck.types.finding import Finding
from tests.scripts import written
from tests.test_scripts_causes import START, marked


def heads(folder: Path, text: str, steps: int = 60) -> tuple[list[Finding], set[str]]:
    """Warnings and errors that follow from no other finding, and the codes of those that do."""
    path = written(folder, START + text)
    (report,) = scan_script(ScriptSpec(str(path), quiet=True, steps=steps), Settings())
    return [f for f in report.findings if f.cause is None and f.severity != "info"], {f.code for f in report.findings if f.cause}


def check(folder: Path, text: str, code: str, *consequences: str) -> Finding:
    found, followed = heads(folder, text)
    assert [(f.code, f.severity) for f in found] == [(code, "error")]
    assert found[0].location is not None and found[0].location.line == marked(text)
    assert followed.issuperset(consequences)
    return found[0]


CLEARED = """
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for step in range(60):
    x = torch.randn(16, 8)
    loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
    loss.backward()
    optimizer.zero_grad()  # here
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
"""


def test_gradients_that_were_cleared_are_not_clipped_too_early_as_well(tmp_path):
    check(tmp_path, CLEARED, "GRAPH006")
    early = CLEARED.replace("    optimizer.zero_grad()  # here\n    nn.utils", "    nn.utils").replace(
        "    loss.backward()", "    optimizer.zero_grad()\n    nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here\n    loss.backward()"
    )
    found, _ = heads(tmp_path, early)
    assert {f.code for f in found} == {"LOOP002"}


BLOCKS = """
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.ln(x))))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.blocks = [Block(16) for _ in range(2)]  # here
    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for step in range(60):
    x = torch.randn(32, 8)
    loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_modules_in_a_list_are_one_finding_where_the_list_is_made(tmp_path):
    f = check(tmp_path, BLOCKS, "GRAPH002")
    assert f.message.startswith("self.blocks.{0..1} (Block): 12 trainable tensors")


TABLE = """
scales = torch.logspace(-1, 3.3, 12)
inputs = torch.rand(600, 12)
labels = ((inputs[:, :6].sum(1) - 3).sign() > 0).float()
inputs = inputs * scales
net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 1))  # here
optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
loader = DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=30, shuffle=True)
for epoch in range(10):
    for x, y in loader:
        loss = F.binary_cross_entropy_with_logits(net(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_an_input_is_the_error_where_scaling_it_is_all_that_is_needed(tmp_path):
    f = check(tmp_path, TABLE.replace("RATE", "0.3"), "DATA001", "ACT002", "LOSS005")
    assert "with standardize-input" in f.message and f.confirmed.startswith("by the probe")


def test_a_rate_that_nothing_stands_stays_the_error(tmp_path):
    found, _ = heads(tmp_path, TABLE.replace("RATE", "3e5"))
    assert {f.code: f.severity for f in found}["OPT001"] == "error"
    assert {f.code: f.severity for f in found}.get("DATA001", "warning") == "warning"


SUMMED = """
net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
optimizer = torch.optim.SGD(net.parameters(), lr=0.6, momentum=0.9)
for step in range(480):
    x = torch.randn(16, 20) + 1
    loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
    loss.backward()  # here
    if step % 8 == 7:
        optimizer.step()
        optimizer.zero_grad()
"""


def test_losses_that_are_summed_are_the_error_where_their_mean_would_learn(tmp_path):
    check(tmp_path, SUMMED, "LOOP006", "OPT001")


REBUILT = """
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for step in range(20):
    x = torch.randn(16, 8)
    output = net(x)
    loss = F.cross_entropy(output, x[:, :3].argmax(1))
    MADE  # here
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    shown = f"{loss.item():.3f}"
"""


MADE = "torch.tensor(loss.item(), requires_grad=True)"


@pytest.mark.parametrize("made", [f"loss = {MADE}", f"loss = {MADE} + {MADE.replace('loss', 'output.square().mean()')}"])
def test_a_loss_that_is_made_anew_is_no_weight_that_is_updated_by_hand(made, tmp_path):
    check(tmp_path, REBUILT.replace("MADE", made), "GRAPH001")


SOFT = """
teacher, net = nn.Linear(20, 10), nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
inputs = torch.randn(600, 20)
targets = torch.softmax(teacher(inputs).detach() / 4, 1)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for epoch in range(8):
    for x, y in DataLoader(TensorDataset(inputs, targets), batch_size=50, shuffle=True):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_soft_targets_leave_a_loss_that_no_training_takes_away(tmp_path):
    """A student that ends 1 % below chance has come nearly all the way to the entropy of its teacher's answers."""
    assert heads(tmp_path, SOFT)[0] == []
