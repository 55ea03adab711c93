# accelerate launch: a sequence tagger, started by the launcher.
# needs: accelerate
# run: -- accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no {script} --epochs 6
# healthy: accuracy > 0.95
# fault: zero_grad was forgotten
# codes: GRAPH006
# at: accelerator.backward( | optimizer.step()
# -             optimizer.zero_grad()
# -             logits = model(tokens_)
# +             logits = model(tokens_)
import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Tagger(nn.Module):
    """Is a token larger than the one before it?"""

    def __init__(self, vocabulary=20, dim=24, hidden=32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 2)

    def forward(self, tokens):
        states, _ = self.lstm(self.embed(tokens))
        return self.head(states)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(7)
    accelerator = Accelerator()
    tokens = torch.randint(0, 20, (2000, 12))
    tags = torch.zeros_like(tokens)
    tags[:, 1:] = (tokens[:, 1:] > tokens[:, :-1]).long()
    loader = DataLoader(TensorDataset(tokens[:1800], tags[:1800]), batch_size=50, shuffle=True)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    criterion = nn.CrossEntropyLoss()
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(args.epochs):
        for tokens_, tags_ in loader:
            optimizer.zero_grad()
            logits = model(tokens_)
            loss = criterion(logits.flatten(0, 1), tags_.flatten())
            accelerator.backward(loss)
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(tokens[1800:]).argmax(-1) == tags[1800:]).float().mean().item()
        if accelerator.is_main_process:
            print(f"epoch {epoch} loss {loss.item():.4f} accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
