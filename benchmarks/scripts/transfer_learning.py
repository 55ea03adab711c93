# Transfer: a backbone that was trained before is frozen and kept in eval, a new head is trained.
# healthy: accuracy > 0.85
# fault: the optimizer was made before the head was replaced: it holds the old one
# codes: GRAPH003 LOOP001
# at: SGD( | model.head = | optimizer.step()
# -     for p in model.parameters():
# -         p.requires_grad = False
# -     model.head = nn.Linear(128, 5)
# -     optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
# +     for p in model.backbone.parameters():
# +         p.requires_grad = False
# +     optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
# +     model.head = nn.Linear(128, 5)
import torch
import torch.nn as nn
from sklearn.datasets import load_digits


class Model(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, x):
        return self.head(self.backbone(x))


def train(model, optimizer, x, y, epochs, frozen=False):
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        model.train()
        if frozen:
            model.backbone.eval()
        for idx in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            loss = loss_fn(model(x[idx]), y[idx])
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.4f}")


def pretrained(x, y):
    """As if from a hub: a few steps on the other digits."""
    model = Model(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(15):
        idx = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[idx]), y[idx] - 5).backward()
        optimizer.step()
    return model


def main():
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
    low = y < 5
    model = pretrained(x[~low], y[~low])
    for p in model.parameters():
        p.requires_grad = False
    model.head = nn.Linear(128, 5)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, x[low][:700], y[low][:700], epochs=8, frozen=True)
    model.eval()
    with torch.no_grad():
        print("accuracy", (model(x[low][700:]).argmax(1) == y[low][700:]).float().mean().item())


if __name__ == "__main__":
    main()
