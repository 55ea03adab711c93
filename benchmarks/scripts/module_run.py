# Run with python -m: a configuration as a dataclass, a Trainer class of one's own (as minGPT's), and a callback.
# run: -- python -m {module} --epochs 12 --depth 4
# healthy: accuracy > 0.9
# fault: layers kept in a plain list: the optimizer never sees them
# codes: GRAPH002
# at: self.layers = | layers.append | Block(
# -         self.layers = nn.ModuleList([Block(config.width) for _ in range(config.depth)])
# +         self.layers = [Block(config.width) for _ in range(config.depth)]
import argparse
import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset


@dataclass
class Config:
    width: int = 32
    depth: int = 3
    epochs: int = 5
    lr: float = 1e-3
    batch_size: int = 64
    grad_norm_clip: float = 1.0


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.ln(x))))


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input, self.head = nn.Linear(64, config.width), nn.Linear(config.width, 10)
        self.layers = nn.ModuleList([Block(config.width) for _ in range(config.depth)])

    def forward(self, x, targets=None):
        x = self.input(x)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)
        return logits, None if targets is None else F.cross_entropy(logits, targets)


class Trainer:
    def __init__(self, config, model, train_dataset):
        self.config, self.model, self.train_dataset = config, model, train_dataset
        self.callbacks = defaultdict(list)
        self.iter_num, self.iter_time = 0, time.time()
        self.loss = None

    def add_callback(self, onevent, callback):
        self.callbacks[onevent].append(callback)

    def run(self):
        model, config = self.model, self.config
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
        sampler = RandomSampler(self.train_dataset, replacement=True, num_samples=int(1e6))
        loader = DataLoader(self.train_dataset, sampler=sampler, batch_size=config.batch_size)
        model.train()
        data_iter = iter(loader)
        while self.iter_num < config.epochs * len(self.train_dataset) // config.batch_size:
            x, y = next(data_iter)
            _, self.loss = model(x, y)
            model.zero_grad(set_to_none=True)
            self.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_norm_clip)
            self.optimizer.step()
            for callback in self.callbacks["on_batch_end"]:
                callback(self)
            self.iter_num += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--depth", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(3407)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)
    model = Net(Config(depth=args.depth))
    trainer = Trainer(Config(epochs=args.epochs, depth=args.depth), model, TensorDataset(x[:1500], y[:1500]))
    trainer.add_callback("on_batch_end", lambda t: t.iter_num % 50 == 0 and print(f"iter {t.iter_num}: train loss {t.loss.item():.5f}"))
    trainer.run()
    model.eval()
    with torch.no_grad():
        print("accuracy", (model(x[1500:])[0].argmax(1) == y[1500:]).float().mean().item())


if __name__ == "__main__":
    main()
