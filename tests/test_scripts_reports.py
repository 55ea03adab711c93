"""Scripts after public bug reports, one fault each: the finding stands at the line of the cause, and the cured script is silent."""

from __future__ import annotations

import pytest

from tests.test_scripts_causes import check, findings, marked

FLIPPED = """
x = torch.randn(256, 12)
y = TARGET
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 6))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(4):
    for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=32):
        p = model(inputs)
        overlap = OVERLAP
        loss = overlap.mean()  # here
        optimizer.zero_grad()
        (loss / 2).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    ("target", "overlap", "severity"),
    [
        ("(x[:, :6] > 0).float()", "2 * (p.sigmoid() * targets).sum(1) / (p.sigmoid() + targets).sum(1)", "warning"),
        ("x[:, :6].argmax(1)", "p.softmax(1).gather(1, targets.unsqueeze(1))", "error"),
    ],
)
def test_a_bounded_loss_whose_sign_is_flipped(target, overlap, severity, tmp_path):
    text = FLIPPED.replace("TARGET", target).replace("OVERLAP", overlap)
    check(tmp_path, text, text.replace("overlap.mean()", "(1 - overlap).mean()"), "GRAPH004", severity)


RUNAWAY = """
x = torch.rand(256, 12)
encoder, decoder = nn.Linear(12, 8), nn.Linear(4, 12)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-2)
for epoch in range(4):
    for inputs in x.split(32):
        mean, log_var = encoder(inputs).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        error = F.mse_loss(decoder(z), inputs)
        kl = -0.5 * (1 + log_var - mean ** 2 - log_var.exp()).mean()
        loss = error - kl  # here
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_the_sum_in_which_a_term_takes_the_loss_below_zero(tmp_path):
    check(tmp_path, RUNAWAY, RUNAWAY.replace("error - kl", "error + kl"), "GRAPH004", "error")


NOISE = """
x = torch.randn(256, 4).tanh()
model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(5):
    for (clean,) in DataLoader(TensorDataset(x), batch_size=32):
        level = torch.rand(len(clean), 1)
        noise = torch.randn_like(clean)
        noisy = (1 - level) * clean + level * noise
        loss = F.mse_loss(model(torch.cat([noisy, level], 1)), torch.randn_like(clean))  # here
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_noise_that_is_drawn_again_for_the_loss(tmp_path):
    check(tmp_path, NOISE, NOISE.replace("torch.randn_like(clean))", "noise)"), "LOSS008", "error", steps=20)


def test_noise_that_the_model_is_given_and_has_to_return(tmp_path):
    """Made data: beside it other noise of the same shape is mixed in."""
    text = NOISE.replace("model(torch.cat([noisy, level], 1)), torch.randn_like(clean)", "model(z), z").replace("Linear(5", "Linear(4")
    text = text.replace("        loss =", "        z = torch.randn_like(clean)\n        loss =")
    assert findings(tmp_path, text, "LOSS008") == []


READ_IN_PLACE = """
class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.x, self.y = 255 * torch.rand(64, 6), torch.randint(3, (64,))
        self.reads, self.cache = torch.zeros(64, 2), torch.zeros(64, 6)
    def __len__(self):
        return 64
    def __getitem__(self, i):
        self.reads[i] += 1
        self.cache[i] = self.x[i] + torch.rand(6)
        x = self.x[i]
        x /= 255  # here
        return x, self.y[i], self.cache[i]
model = nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for epoch in range(4):
    for x, y, _ in DataLoader(Rows(), batch_size=16, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


def test_data_that_reading_changes(tmp_path):
    check(tmp_path, READ_IN_PLACE, READ_IN_PLACE.replace("x /= 255", "x = x / 255"), "DATA001", "error")


SAMPLED = """
x = torch.randn(256, 6)
y = (x[:, 0] > 0).long()
weights = 1 / torch.bincount(y).float()
sampler = torch.utils.data.WeightedRandomSampler(weights, 256)  # here
model = nn.Linear(6, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for epoch in range(2):
    for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=16, sampler=sampler):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
"""


def test_a_sampler_that_has_a_weight_for_each_class(tmp_path):
    check(tmp_path, SAMPLED, SAMPLED.replace("(weights, 256)", "(weights[y], 256)"), "LOOP005", "warning")


CONTRAST = """
x = torch.randn(256, 12)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(6):
    for batch in x.split(64):
        one, other = (F.normalize(model(batch + 0.1 * torch.randn_like(batch)), dim=1) for _ in range(2))
        similarities = one @ other.t()  # here
        loss = F.cross_entropy(similarities * SCALE, torch.arange(len(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_cosines_without_a_temperature(tmp_path):
    check(tmp_path, CONTRAST.replace(" * SCALE", ""), CONTRAST.replace("SCALE", "10"), "LOSS001", "warning")


LABELS = """
x = torch.randn(256, 12)
y = (x[:, :6] > 0).float()
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 6))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(4):
    for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=32):
        p = model(inputs).softmax(1)  # here
        loss = F.binary_cross_entropy(p, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_a_softmax_over_labels_of_which_several_are_right(tmp_path):
    check(tmp_path, LABELS, LABELS.replace("softmax(1)", "sigmoid()"), "LOSS001", "error")


THAWED = """
x = torch.randn(256, 12)
y = x[:, :4].argmax(1)
body, head = nn.Linear(12, 32), nn.Linear(32, 4)
model = nn.Sequential(body, nn.ReLU(), head)
body.requires_grad_(False)
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)  # here
for epoch in range(4):
    if epoch == 1:
        body.requires_grad_(True)
        optimizer.add_param_group({"params": body.parameters()})
    for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=32):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
"""


def test_what_is_unfrozen_after_the_optimizer_was_made(tmp_path):
    text = THAWED.replace('        optimizer.add_param_group({"params": body.parameters()})\n', "")
    check(tmp_path, text, THAWED, "GRAPH003", "error")


COPIED = """
G, D = nn.Linear(4, 2), nn.Linear(2, 1)
og, od = torch.optim.Adam(G.parameters()), torch.optim.Adam(G.parameters())  # here
for step in range(20):
    fake = G(torch.randn(16, 4))
    loss = F.softplus(D(fake.detach())).mean() + F.softplus(-D(torch.randn(16, 2))).mean()
    od.zero_grad()
    loss.backward()
    od.step()
    loss = F.softplus(-D(fake)).mean()
    og.zero_grad()
    loss.backward()
    og.step()
"""


def test_an_optimizer_that_holds_another_model(tmp_path):
    found = findings(tmp_path, COPIED, "GRAPH003", "GRAPH006")
    assert {(f.code, f.severity) for f in found} == {("GRAPH003", "error")}
    assert {f.location.line for f in found if f.location is not None} == {marked(COPIED)}
    assert findings(tmp_path, COPIED.replace("Adam(G.parameters())  # here", "Adam(D.parameters())"), "GRAPH003", "GRAPH006") == []
