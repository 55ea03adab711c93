# accelerate: prepare, accumulate and gather in a plain loop, with a cosine schedule.
# needs: accelerate
# healthy: accuracy > 0.95
# fault: the gradients are cleared between backward and step
# codes: GRAPH006 LOOP001 GRAD004
# at: optimizer.zero_grad() | optimizer.step() | accelerator.backward(
# -                 if accelerator.sync_gradients:
# +                 optimizer.zero_grad()
# +                 if accelerator.sync_gradients:
# -                 scheduler.step()
# -                 optimizer.zero_grad()
# +                 scheduler.step()
import argparse

import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(out)))


def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), ResidualBlock(16), nn.MaxPool2d(2), ResidualBlock(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    set_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target))
    train, test = random_split(data, [1500, 297])
    train_loader, test_loader = DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=64)
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs * len(train_loader))
    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(model, optimizer, train_loader, test_loader, scheduler)
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train_loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        model.eval()
        correct = total = 0
        for images, labels in test_loader:
            with torch.no_grad():
                predictions = model(images).argmax(-1)
            predictions, labels = accelerator.gather_for_metrics((predictions, labels))
            correct, total = correct + (predictions == labels).sum().item(), total + len(labels)
        accelerator.print(f"epoch {epoch}: accuracy {correct / total:.4f}")


if __name__ == "__main__":
    main()
