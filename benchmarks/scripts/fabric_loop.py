# Lightning Fabric: setup, backward, clip_gradients and save in a loop of one's own: next characters with a GRU.
# needs: lightning
# healthy: bits < 1.1
# fault: the gradients are never cleared
# codes: GRAPH006
# at: fabric.backward(loss) | optimizer.step()
# -             optimizer.zero_grad()
# -             loss = F.cross_entropy(model(x), y)
# +             loss = F.cross_entropy(model(x), y)
import math

import torch
from lightning.fabric import Fabric, seed_everything
from sklearn.datasets import load_digits, load_wine
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

TEXT = load_wine().DESCR + load_digits().DESCR


class Windows(Dataset):
    def __init__(self, text, length=32):
        self.vocabulary = sorted(set(text))
        self.ids = torch.tensor([self.vocabulary.index(c) for c in text])
        self.length = length

    def __len__(self):
        return len(self.ids) - self.length - 1

    def __getitem__(self, i):
        return self.ids[i : i + self.length], self.ids[i + 1 : i + self.length + 1]


class CharGRU(nn.Module):
    def __init__(self, vocabulary, dim=32, hidden=96):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.gru = nn.GRU(dim, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, x):
        h, _ = self.gru(self.embed(x))
        return self.out(h).transpose(1, 2)


def main():
    seed_everything(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    data = Windows(TEXT)
    model = CharGRU(len(data.vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=64, shuffle=True))
    for epoch in range(4):
        total = 0.0
        for i, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            total += loss.item()
        fabric.print(f"epoch {epoch} bits {total / (i + 1) / math.log(2):.3f}")
    fabric.save("checkpoint.ckpt", {"model": model, "optimizer": optimizer})


if __name__ == "__main__":
    main()
