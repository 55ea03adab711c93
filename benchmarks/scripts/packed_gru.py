# A GRU over packed sequences of different lengths.
# healthy: accuracy > 0.95
# fault: not packed, and the last place of each row is read: mostly padding
# codes: SEQ004 GRAD003
# at: self.gru( | out[:, -1] | nn.GRU(
# -         packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
# -         _, h = self.gru(packed)
# -         return self.fc(h[-1])
# +         out, _ = self.gru(self.embed(x))
# +         return self.fc(out[:, -1])
import random

import torch
from torch import nn, optim
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

random.seed(0)
torch.manual_seed(0)


def sample():
    """Are there more 1s than 2s? Most rows are short, a few are long."""
    length = random.choice([5, 7, 9, 11, 120])
    row = torch.randint(1, 5, (length,))
    return row, int((row == 1).sum() > (row == 2).sum())


def batches(data, size):
    random.shuffle(data)
    for i in range(0, len(data), size):
        rows, labels = zip(*data[i : i + size])
        yield pad_sequence(rows, batch_first=True), torch.tensor([len(r) for r in rows]), torch.tensor(labels)


class Majority(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.embed = nn.Embedding(5, 16, padding_idx=0)
        self.gru = nn.GRU(16, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        _, h = self.gru(packed)
        return self.fc(h[-1])


train_data, test_data = [sample() for _ in range(1500)], [sample() for _ in range(300)]
model = Majority()
optimizer = optim.Adam(model.parameters(), lr=5e-3)
loss_fn = nn.CrossEntropyLoss()
for epoch in range(10):
    model.train()
    for x, lengths, y in batches(train_data, 50):
        optimizer.zero_grad()
        loss = loss_fn(model(x, lengths), y)
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        correct = sum((model(x, lengths).argmax(1) == y).sum().item() for x, lengths, y in batches(test_data, 100))
    print(f"epoch {epoch}: loss {loss.item():.4f} accuracy {correct / 300:.4f}")
