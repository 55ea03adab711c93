# CTC: a convolutional and recurrent net reads digits out of a noisy signal.
# healthy: exact > 0.85
# fault: a convolution of stride 4 leaves fewer frames than some targets have letters: their loss is infinite
# codes: NUM001 LOSS002
# at: criterion( | nn.CTCLoss( | nn.Conv1d(
# -             nn.Conv1d(8, 48, 5, stride=2, padding=2), nn.ReLU(), nn.Conv1d(48, 48, 3, padding=1), nn.ReLU()
# +             nn.Conv1d(8, 48, 5, stride=4, padding=2), nn.ReLU(), nn.Conv1d(48, 48, 3, stride=4, padding=1), nn.ReLU()
import torch
import torch.nn as nn

torch.manual_seed(0)
SYMBOLS, CHANNELS = 6, 8
PATTERNS = torch.randn(SYMBOLS + 1, CHANNELS) * 1.5


def utterance():
    """Each symbol is held for 5 to 9 frames, silence of 2 to 4 between them."""
    symbols = torch.randint(1, SYMBOLS + 1, (int(torch.randint(2, 7, (1,))),))
    frames = []
    for s in symbols:
        frames += [PATTERNS[s]] * int(torch.randint(5, 10, (1,))) + [torch.zeros(CHANNELS)] * int(torch.randint(2, 5, (1,)))
    signal = torch.stack(frames)
    return signal + 0.5 * torch.randn_like(signal), symbols


def make_batch(n):
    signals, targets = zip(*[utterance() for _ in range(n)])
    lengths = torch.tensor([len(s) for s in signals])
    padded = nn.utils.rnn.pad_sequence(signals, batch_first=True)
    return padded, lengths, torch.cat(targets), torch.tensor([len(t) for t in targets])


class Recognizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(8, 48, 5, stride=2, padding=2), nn.ReLU(), nn.Conv1d(48, 48, 3, padding=1), nn.ReLU()
        )
        self.rnn = nn.GRU(48, 48, batch_first=True, bidirectional=True)
        self.out = nn.Linear(96, SYMBOLS + 1)

    def forward(self, x, lengths):
        h = self.conv(x.transpose(1, 2)).transpose(1, 2)
        frames = (lengths * h.size(1)) // x.size(1)
        h, _ = self.rnn(h)
        return self.out(h).log_softmax(-1).transpose(0, 1), frames.clamp(min=1)


def greedy(log_probs, frames):
    answers = []
    for row, n in zip(log_probs.argmax(-1).T, frames):
        collapsed = torch.unique_consecutive(row[:n])
        answers.append(collapsed[collapsed != 0].tolist())
    return answers


model = Recognizer()
criterion = nn.CTCLoss(blank=0)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(400):
    x, lengths, targets, target_lengths = make_batch(32)
    log_probs, frames = model(x, lengths)
    loss = criterion(log_probs, targets, frames, target_lengths)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")

model.eval()
with torch.no_grad():
    x, lengths, targets, target_lengths = make_batch(200)
    answers = greedy(*model(x, lengths))
print("exact", sum(a == t.tolist() for a, t in zip(answers, targets.split(target_lengths.tolist()))) / 200)
