"""Scripts whose loss pulls the wrong way, or whose model is not built as meant; and healthy ones that look like them."""

from __future__ import annotations

import pytest

from tests.scripts import codes, complaints, scan, written
from tests.test_scripts_causes import START, check, findings

PLAYED = """
G, D = nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
og, od = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
for step in range(20):
    fake = G(torch.randn(16, 4))
    loss = F.softplus(D(fake.detach())).mean() + F.softplus(-D(torch.randn(16, 2))).mean()
    od.zero_grad()
    loss.backward()
    od.step()
    loss = F.softplus(SIGN * D(fake)).mean()  # here
    og.zero_grad()
    loss.backward()
    og.step()
"""


def test_a_generator_that_helps_the_discriminator(tmp_path):
    check(tmp_path, PLAYED.replace("SIGN *", ""), PLAYED.replace("SIGN", "-1"), "GRAPH004", "warning")


def test_a_generator_that_helps_it_with_samples_drawn_anew(tmp_path):
    text = PLAYED.replace("-D(torch.randn(16, 2))", "-D(torch.randn(16, 2) + 9)").replace(
        "D(fake)).mean()", "D(G(torch.randn(16, 4)))).mean()"
    )
    check(tmp_path, text.replace("SIGN *", ""), text.replace("SIGN", "-1"), "GRAPH004", "warning")


OLD = """
policy = nn.Linear(6, 4)
optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
for step in range(20):
    states = torch.randn(32, 6)
    actions, gains = torch.randint(4, (32, 1)), torch.randn(32, 1)
    before = policy(states).log_softmax(1).gather(1, actions)FROZEN
    for epoch in range(2):
        scores = policy(states).log_softmax(1)
        OLD
        ratio = (scores.gather(1, actions) - old).exp()  # here
        loss = -torch.min(ratio * gains, ratio.clamp(0.8, 1.2) * gains).mean() + 0.01 * (scores.exp() * scores).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_a_ratio_of_probabilities_that_are_the_same(tmp_path):
    faulty = OLD.replace("FROZEN", "").replace("OLD", "old = policy(states).log_softmax(1).gather(1, actions)")
    found = check(tmp_path, faulty, OLD.replace("FROZEN", ".detach()").replace("OLD", "old = before"), "LOSS009", "warning")
    assert "both sides of a difference" in found.message


# Of three passes the last is led away from its label, as it is meant.
UNLIKELY = """
data = torch.randn(64, 8)
labels = data[:, :4].argmax(1)[:, None]
net = nn.Linear(8, 4)
optimizer = torch.optim.Adam(net.parameters(), 0.01)
for step in range(20):
    right, noisy, other = (F.softmax(net(x), 1).gather(1, labels) for x in (data, data + 0.1, -data))
    loss = -(right.log() + noisy.log() + (1 - other).log()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_where_the_model_runs_three_times_no_pass_stands_for_all(tmp_path):
    assert findings(tmp_path, UNLIKELY, "GRAPH004") == []


PUNISHED = """
net = nn.Linear(4, 3)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(20):
    state = torch.randn(64, 4)
    with torch.no_grad():
        action = torch.distributions.Categorical(logits=net(state)).sample()
    reward = -1.0 - (action != state[:, :3].argmax(1)).float()
    loss = (F.cross_entropy(net(state), action, reduction="none") * reward).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_policy_may_lower_the_likelihood_of_what_it_did(tmp_path):
    assert findings(tmp_path, PUNISHED, "GRAPH004") == []


FOCAL = """
data = torch.randn(64, 8)
labels = data[:, :4].argmax(1)
net, share = nn.Linear(8, 4), torch.tensor([0.1, 0.4, 0.3, 0.2])[labels]
optimizer = torch.optim.Adam(net.parameters(), 0.01)
for step in range(20):
    errors = F.cross_entropy(net(data), labels, reduction="none")
    p = torch.exp(-errors)
    loss = (share * FACTOR ** 2 * errors).mean()  # here
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_factor_that_favours_the_easy_samples(tmp_path):
    check(tmp_path, FOCAL.replace("FACTOR", "p"), FOCAL.replace("FACTOR", "(1 - p)"), "GRAPH004", "warning")
    for factor in ("p.detach()", "(1 / (1 + p))"):  # as robust losses have it; one that grows with the error
        assert findings(tmp_path, FOCAL.replace("FACTOR", factor), "GRAPH004") == []


MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.score = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 1)
        self.heads = nn.ModuleList(HEADS)  # heads
    def forward(self, x):
        h = self.body(x)
        h = DROP  # drop
        h = (F.softmax(self.score(h), dim=DIM) * h).sum(1)  # dim
        return [head(h) for head in self.heads]
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
data = torch.randn(64, 5, 8)
targets = [(data.mean(1)[:, k] > 0).long() for k in range(3)]
for step in range(16):
    loss = sum(F.cross_entropy(out, y) for out, y in zip(net(data), targets))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
RIGHT = {"HEADS": "[nn.Linear(16, 2) for _ in range(3)]", "DROP": "F.dropout(h, 0.5, self.training)", "DIM": "1"}


@pytest.mark.parametrize(
    ("name", "wrong", "code", "severity"),
    [
        ("HEADS", "[nn.Linear(16, 2)] * 3", "INIT006", "error"),
        ("DROP", "F.dropout(h, 0.5)", "REG003", "warning"),
        ("DROP", "nn.Dropout(0.5)(h)", "REG003", "warning"),
        ("DIM", "-1", "LOSS004", "warning"),
    ],
)
def test_a_model_that_is_not_built_as_meant(name, wrong, code, severity, tmp_path):
    right, faulty = MODEL, MODEL.replace(f"# {name.lower()}", "# here")
    for key, value in RIGHT.items():
        right, faulty = right.replace(key, value), faulty.replace(key, wrong if key == name else value)
    check(tmp_path, faulty, right, code, severity)


def test_dropout_that_the_code_asks_for_in_evaluation_is_meant(tmp_path):
    text = MODEL.replace("HEADS", RIGHT["HEADS"]).replace("DIM", "1").replace("DROP", "F.dropout(h, 0.5, training=True)")
    assert findings(tmp_path, text, "REG003") == []


def test_what_a_package_drops_may_follow_an_argument(tmp_path):
    package = tmp_path / "site-packages" / "fogging.py"
    package.parent.mkdir()
    package.write_text("from torch.nn import functional as F\ndef fog(x):\n    return F.dropout(x, 0.5)\n")
    text = MODEL.replace("HEADS", RIGHT["HEADS"]).replace("DIM", "1").replace("DROP", "fog(h)")
    found = f"import sys\nsys.path.append({str(package.parent)!r})\nfrom fogging import fog\n"
    assert findings(tmp_path, found + text, "REG003") == []


# An agent whose rewards grow as it gets further. Trained on, it learns: what it learns from moves with what it is.
ITS_OWN_TARGET = """
from torch.autograd import Variable

net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
places, samples = torch.eye(8), torch.arange(32)
for step in range(60):
    place, action = torch.randint(8, (32,)), torch.randint(2, (32,))
    reward = 1.0 if step < 45 else 40.0
    following = net(places[(place + 2 * action - 1) % 8]).max(1)[0]
    target = reward + 0.99 * following
    loss = (net(places[place])[samples, action] - CUT).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize("cut", ["target.detach()", "Variable(target.data)"])
def test_a_loss_whose_target_the_model_makes_itself_may_rise(cut, tmp_path):
    (report,) = scan(written(tmp_path, START + ITS_OWN_TARGET.replace("CUT", cut)), quiet=True, steps=60)
    assert report.measurement.probe.surrogate and complaints([report]) == []


# The rewards of a policy reach the value net by way of numpy, as those of an environment do.
RETURNS = """
import numpy as np

policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
value = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
policies = torch.optim.Adam(policy.parameters(), 1e-3)
values = torch.optim.Adam(value.parameters(), 1e-3)
numbers = np.random.default_rng(0)
for epoch in range(6):
    states = numbers.normal(size=(64, 4)).astype(np.float32)
    with torch.no_grad():
        actions = torch.distributions.Categorical(logits=policy(torch.as_tensor(states))).sample().numpy()
    earned = (50 * states[:, 0] * (2 * actions - 1) + 30).astype(np.float32)
    seen, returns = torch.as_tensor(states), torch.as_tensor(earned)
    chosen = torch.distributions.Categorical(logits=policy(seen)).log_prob(torch.as_tensor(actions))
    loss = -(chosen * (returns - returns.mean()) / returns.std()).mean()
    policies.zero_grad()
    loss.backward()
    policies.step()
    for _ in range(4):
        error = F.mse_loss(value(seen).squeeze(1), returns)
        values.zero_grad()
        error.backward()
        values.step()
"""


def test_what_a_policy_earns_is_no_data(tmp_path):
    assert "DATA003" not in codes(scan(written(tmp_path, START + RETURNS), quiet=True))
