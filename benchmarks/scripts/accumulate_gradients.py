# Gradient accumulation over eight micro-batches, with a GRU that counts.
# healthy: accuracy > 0.9
# fault: the losses of the micro-batches are summed
# codes: LOOP006 OPT001
# at: .backward() | optimizer.step()
# -             loss = criterion(model(inputs), targets) / accumulation_steps
# -             loss.backward()
# +             loss = criterion(model(inputs), targets)
# +             loss.backward()
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset


class Counting(Dataset):
    """How often does 1 occur?"""

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, 6, (n, 15), generator=g)
        self.counts = (self.tokens == 1).sum(1).clamp(max=5)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return self.tokens[i], self.counts[i]


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 16)
        self.rnn = nn.GRU(16, 48, batch_first=True)
        self.head = nn.Linear(48, 6)

    def forward(self, x):
        _, h = self.rnn(self.embed(x))
        return self.head(h[-1])


def main(epochs=12, micro_batch=16, accumulation_steps=8):
    torch.manual_seed(0)
    loader = DataLoader(Counting(4096, 0), batch_size=micro_batch, shuffle=True)
    test = Counting(500, 1)
    model = Counter()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    optimizer.zero_grad()
    for epoch in range(epochs):
        running = 0.0
        for i, (inputs, targets) in enumerate(loader):
            loss = criterion(model(inputs), targets) / accumulation_steps
            loss.backward()
            running += loss.item()
            if (i + 1) % accumulation_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            accuracy = (model(test.tokens).argmax(1) == test.counts).float().mean().item()
        print(f"epoch {epoch} loss {running / len(loader):.4f} accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
