"""Scripts with one fault each, scanned for it: the finding stands at the line of the cause, and the cured script is silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_script
from gradcheck.types.finding import Finding
from tests.scripts import written

START = """
import copy
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
"""


def findings(folder: Path, text: str, *select: str, steps: int = 12, advice: bool = False) -> list[Finding]:
    """What the selected rules say of a script; none of them may crash or go unmeasured."""
    path = written(folder, START + text)
    reports = scan_script(ScriptSpec(str(path), quiet=True, steps=steps), Settings(select=select))
    assert not [s for r in reports for s in r.rules if s.status == "crashed"]
    return [f for r in reports for f in r.findings if advice or f.severity != "info"]


def marked(text: str) -> int:
    """The line of the script that bears the mark."""
    return next(n for n, line in enumerate((START + text).splitlines(), 1) if "# here" in line)


def check(folder: Path, faulty: str, cured: str, code: str, severity: str, *select: str, **how: int) -> Finding:
    found = findings(folder, faulty, *(select or (code,)), **how)
    assert [(f.code, f.severity) for f in found] == [(code, severity)]
    assert found[0].location is not None and found[0].location.line == marked(faulty)
    assert findings(folder, cured, *(select or (code,)), **how) == []
    return found[0]


GAN = """
G, D = nn.Linear(4, 2), nn.Linear(2, 1)
og, od = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
for step in range(20):
    fake = G(torch.randn(16, 4))
    loss = F.softplus(D(fake.detach())).mean() + F.softplus(-D(torch.randn(16, 2))).mean()
    od.zero_grad()
    loss.backward()
    od.step()
    loss = F.softplus(-D(fake.detach())).mean()  # here
    og.zero_grad()
    loss.backward()
    og.step()
"""


def test_of_several_detach_the_one_between_the_parameters_and_their_loss(tmp_path):
    check(tmp_path, GAN, GAN.replace("-D(fake.detach())", "-D(fake)"), "GRAPH001", "error")


UNFOLLOWED = GAN.replace("  # here", "").replace(
    "    loss = F.softplus(-D(fake.detach())).mean()",
    "    with torch.no_grad():\n        fake = G(torch.randn(16, 4))  # here\n    loss = F.softplus(-D(fake)).mean()",
)


def test_a_model_that_is_called_without_gradients_not_a_detach_of_another_step(tmp_path):
    cured = UNFOLLOWED.replace("with torch.no_grad()", "if True")
    check(tmp_path, UNFOLLOWED, cured, "GRAPH001", "error")


ACTOR = """
actor, critic = nn.Linear(6, 3), nn.Linear(6, 1)
oa, oc = torch.optim.Adam(actor.parameters()), torch.optim.Adam(critic.parameters())
for step in range(20):
    s = torch.randn(16, 6)
    dist = torch.distributions.Categorical(logits=actor(s))
    action = dist.sample()
    value = critic(s).squeeze(1)
    advantage = (action == s[:, :3].argmax(1)).float() - value.detach()
    loss = (value - s[:, 0]).square().mean()
    oc.zero_grad()
    loss.backward()
    oc.step()
    loss = -(dist.log_prob(action).detach() * advantage).mean() + 0.01 * critic(s).square().mean()  # here
    oa.zero_grad()
    loss.backward()
    oa.step()
"""


def test_a_sampled_action_is_no_cut(tmp_path):
    check(tmp_path, ACTOR, ACTOR.replace("(action).detach()", "(action)"), "GRAPH001", "error")


LOGGED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
    def forward(self, x):
        h = self.encoder(x)
        self.norm = h.detach().norm()
        h = h.data  # here
        return self.head(h.relu())
net = Net()
optimizer = torch.optim.Adam(net.parameters())
for step in range(20):
    loss = F.cross_entropy(net(torch.randn(16, 8)), torch.randint(3, (16,)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_copy_for_a_log_is_not_blamed(tmp_path):
    check(tmp_path, LOGGED, LOGGED.replace("h = h.data", "h = h"), "GRAPH001", "error")


SUPERVISED = """
net = nn.Linear(8, 3)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
def train(make):
    for step in range(20):
        x, y = torch.randn(16, 8), torch.randint(3, (16,))
        loss = make(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
BORN = {
    "a weight that is 0 / 0": (
        "    count = (y == 5).float()\n    w = count / count.sum()  # here\n"
        "    return (F.cross_entropy(net(x), y, reduction='none') * w).sum()",
        ("count.sum()", "count.sum().clamp(min=1)"),
    ),
    "data normalised by a spread of 0": (
        "    x[:, 2] = 1.0\n    x = (x - x.mean(0)) / x.std(0)  # here\n    return F.cross_entropy(net(x), y)",
        ("x.std(0)", "(x.std(0) + 1e-6)"),
    ),
    "the logarithm of no prior": (
        "    prior = torch.bincount(y * 0, minlength=3) / len(y)\n    shift = prior.log()  # here\n"
        "    return F.cross_entropy(net(x) + shift, y)",
        ("prior.log()", "prior.clamp(min=1e-3).log()"),
    ),
    "a mean over an empty mask": (
        "    return F.cross_entropy(net(x), y) + net(x)[y == 7].mean()  # here",
        ("net(x)[y == 7].mean()", "net(x)[y == 7].sum()"),
    ),
}


@pytest.mark.parametrize("name", BORN)
def test_numbers_that_are_not_finite_are_told_where_the_loop_makes_them(name, tmp_path):
    body, (old, new) = BORN[name]
    text = f"{SUPERVISED}def make(x, y):\n{body}\ntrain(make)\n"
    found = check(tmp_path, text, text.replace(old, new), "NUM001", "error", "NUM001", "DATA002")
    assert "normalise before" not in found.remedies[0].text


ADAPTER = """
class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.zeros(2, 8))  # here
        self.b = nn.Parameter(torch.zeros(3, 2))
    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T
net = Adapter(nn.Linear(8, 3))
optimizer = torch.optim.Adam([net.a, net.b], 1e-2)
for step in range(20):
    x = torch.randn(16, 8)
    loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_two_factors_of_zero_are_named_where_the_first_is_made(tmp_path):
    found = check(tmp_path, ADAPTER, ADAPTER.replace("zeros(2, 8)", "randn(2, 8)"), "GRAD004", "error")
    assert "a and b are multiplied with each other and both 0" in found.message and found.remedies[0].name == "break-symmetry"


TEACHER = """
student = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
teacher = copy.deepcopy(student).requires_grad_(False).eval()
optimizer = torch.optim.Adam(student.parameters(), 1e-3)
for step in range(20):
    x = torch.randn(16, 8) * 3 + 2
    y = x[:, :3].argmax(1)
    aim = teacher(x)  # here
    loss = F.cross_entropy(student(x), y) + F.mse_loss(student(x), aim)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for t, s in zip(teacher.FOLLOWED, student.FOLLOWED):
        t.data = 0.9 * t.data + (0.1 * s.data).to(t.dtype)
"""


def test_a_teacher_whose_buffers_stay(tmp_path):
    check(tmp_path, TEACHER.replace("FOLLOWED", "parameters()"), TEACHER.replace("FOLLOWED", "state_dict().values()"), "LOOP012", "warning")


TARGET_ACTOR = """
actor, critic = nn.Linear(3, 1), nn.Linear(4, 1)
old_actor, old_critic = copy.deepcopy(actor), copy.deepcopy(critic)
actor_optimizer, critic_optimizer = torch.optim.Adam(actor.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-3)
def follow(old, new):
    for o, n in zip(old.parameters(), new.parameters()):
        o.data.lerp_(n.data, 0.05)
for step in range(20):
    s, a, r, after = torch.randn(16, 3), torch.randn(16, 1), torch.randn(16, 1), torch.randn(16, 3)
    with torch.no_grad():
        aim = r + 0.9 * old_critic(torch.cat([after, old_actor(after)], 1))  # here
    loss = F.mse_loss(critic(torch.cat([s, a], 1)), aim)
    critic_optimizer.zero_grad()
    loss.backward()
    critic_optimizer.step()
    loss = -critic(torch.cat([s, actor(s)], 1)).mean()
    actor_optimizer.zero_grad()
    loss.backward()
    actor_optimizer.step()
    follow(old_critic, critic)
    FOLLOW
"""


def test_a_target_actor_that_stays_beside_a_target_critic(tmp_path):
    faulty, cured = (TARGET_ACTOR.replace("FOLLOW", what) for what in ("", "follow(old_actor, actor)"))
    check(tmp_path, faulty, cured, "LOOP012", "info", advice=True)


HARDEST = """
net = nn.Linear(8, 4)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for step in range(20):
    x = torch.randn(16, 8)
    same = F.normalize(net(x), dim=1) @ F.normalize(net(x + 0.1 * torch.randn(16, 8)), dim=1).T
    others = 1 - same.masked_fill(torch.eye(16, dtype=torch.bool), -1e9)
    loss = F.relu(1 - same.diagonal() - others.FARTHEST(1).values + 0.5).mean()  # here
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_margin_that_every_sample_meets_from_the_start(tmp_path):
    found = check(tmp_path, HARDEST.replace("FARTHEST", "max"), HARDEST.replace("FARTHEST", "min"), "GRAD004", "error")
    assert "relu after them changes every entry" in found.message


AVERAGE = """
model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
average = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for step in range(20):
    x = torch.randn(16, 8) * 3 + 2
    y = x[:, :3].argmax(1)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for a, b in zip(average.FOLLOWED, model.FOLLOWED):
            a.copy_(a + 0.1 * (b - a))  # here
"""


def test_an_average_that_is_used_after_the_run_is_advised_where_it_is_moved(tmp_path):
    faulty, cured = (AVERAGE.replace("FOLLOWED", what) for what in ("parameters()", "state_dict().values()"))
    check(tmp_path, faulty, cured, "LOOP012", "info", advice=True)


ADAPTED = """
class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.up = base, nn.Linear(8, 3)
    def forward(self, x): return self.base(x) + self.up(x)
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
reference = copy.deepcopy(model)
def train(steps):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    for step in range(steps):
        x, y = torch.randn(8, 8), torch.randint(3, (8,))
        with torch.no_grad(): old = reference(x)
        loss = F.cross_entropy(model(x), y) + F.mse_loss(model(x), old)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
train(5)
model[1] = Adapter(model[1].requires_grad_(False))
train(20)
"""


def test_adapters_that_are_put_into_a_model_beside_its_copy(tmp_path):
    assert findings(tmp_path, ADAPTED, "LOOP012") == []


VIEWS = """
net = nn.Linear(8, 3)
optimizer = torch.optim.Adam(net.parameters())
for step in range(20):
    x, y = torch.randn(16, 8), torch.randint(3, (16,))
    out = net(torch.stack([x, x + 0.1 * torch.randn(16, 8)]))
    logp = F.log_softmax(out, dim=1)  # here
    loss = F.nll_loss(logp.reshape(-1, 3), y.repeat(2)) - logp[0, torch.arange(16), y].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
TIMES = """
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)
    def forward(self, x):
        return F.log_softmax(self.out(self.rnn(x)[0]), dim=1)  # here
net = Tagger()
optimizer = torch.optim.Adam(net.parameters())
for step in range(20):
    loss = F.nll_loss(net(torch.randn(16, 5, 4)).reshape(-1, 3), torch.randint(3, (16, 5)).reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize("text", [VIEWS, TIMES], ids=["views", "time"])
def test_a_softmax_over_another_axis_than_the_classes(text, tmp_path):
    check(tmp_path, text, text.replace("dim=1", "dim=-1"), "LOSS004", "error")


MASKED = """
G, D = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), nn.Linear(2, 1)
og, od = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
for step in range(20):
    z = torch.randn(16, 4)
    fake = G(z)
    loss = F.softplus(D(fake.detach())).mean() + F.softplus(-D(torch.randn(16, 2))).mean()
    od.zero_grad()
    loss.backward()
    od.step()
    loss = F.softplus(-D(FAKE)).mean() + 0.0 * G(z).square().mean()  # here
    og.zero_grad()
    loss.backward()
    og.step()
"""


def test_a_cut_behind_which_only_zeros_arrive(tmp_path):
    check(tmp_path, MASKED.replace("FAKE", "fake.detach()"), MASKED.replace("FAKE", "G(z)"), "GRAPH001", "error")


LOADED = """
online = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
target = copy.deepcopy(online)
optimizer = torch.optim.Adam(online.parameters())
for step in range(12):
    x = torch.randn(16, 8)
    with torch.no_grad():
        value = x[:, :1] + 0.9 * target(x)
    loss = F.mse_loss(online(x), value)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    target.load_state_dict(target.state_dict())  # here
"""
STRANGE = LOADED.replace("target.load_state_dict(target.state_dict())  # here", "target.load_state_dict(online.state_dict())").replace(
    "optimizer =",
    'online.load_state_dict({f"model.{k}": v + 1 for k, v in online.state_dict().items()}, strict=False)  # here\noptimizer =',
)


@pytest.mark.parametrize(
    ("faulty", "cured"),
    [(LOADED, LOADED.replace("(target.state_dict())", "(online.state_dict())")), (STRANGE, STRANGE.replace('f"model.{k}"', "k"))],
)
def test_a_state_that_changes_nothing(faulty: str, cured: str, tmp_path: Path) -> None:
    check(tmp_path, faulty, cured, "LOOP014", "warning")


TERNARY = """
class Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return 0.1 * weight.sign() * (weight.abs() > 0.05)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return 0.1 * weight

class Rounded(nn.Linear):
    def forward(self, x):
        return F.linear(x, Ternary.apply(self.weight), self.bias)  # here

x = torch.randn(64, 8)
y = (x[:, 0] > 0).long()
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), Rounded(16, 2))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(20):
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_backward_that_does_not_look_at_what_comes_in_is_no_straight_through_one(tmp_path: Path) -> None:
    finding = check(tmp_path, TERNARY, TERNARY.replace("0.1 * weight\n\nclass", "0.1 * grad\n\nclass"), "GRAPH005", "error")
    assert "backward of Ternary" in finding.message


def test_one_of_two_optimizers_that_never_steps(tmp_path: Path) -> None:
    faulty = (
        GAN.replace("range(20)", "range(45)").replace("D(fake.detach())).mean()  # here", "D(fake)).mean()").replace("    od.step()\n", "")
    )
    faulty = faulty.replace("    loss.backward()\n    loss", "    loss.backward()  # here\n    loss")
    cured = faulty.replace("# here\n", "\n    od.step()\n")
    finding = check(tmp_path, faulty, cured, "LOOP001", "warning", steps=40)
    assert "parameters of od" in finding.message
    inside = GAN.replace("range(20)", "range(45)").replace("D(fake.detach())).mean()  # here", "D(fake)).mean()")
    inside = inside.replace("og, od =", "og, step_of_od =")
    inside = inside.replace("for step", "od = torch.optim.SGD(D.parameters(), lr=1e-3)  # it takes its steps by another one\nfor step", 1)
    inside = inside.replace("    od.step()", "    step_of_od.step()")
    reports = scan_script(ScriptSpec(str(written(tmp_path, START + inside)), quiet=True, steps=40), Settings())
    assert len(reports) == 2 and not any(r.coverage.in_part for r in reports)
