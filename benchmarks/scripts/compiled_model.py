# torch.compile around a residual net; evaluation after each epoch.
# healthy: accuracy > 0.93
# fault: eval() after the first epoch is never undone: the batch statistics stay as they were
# codes: LOOP003 NORM005
# at: .eval() | optimizer.step() | .train()
# -         compiled.train()
# -         for i in range(0, len(x_train), 64):
# +         for i in range(0, len(x_train), 64):
# -     compiled = torch.compile(model, backend="aot_eager")
# +     compiled = torch.compile(model, backend="aot_eager")
# +     validate(compiled, x_test, y_test)
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, width))

    def forward(self, x):
        return x + self.f(x)


class Net(nn.Module):
    def __init__(self, width=64, depth=8):
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.Sequential(*[Residual(width) for _ in range(depth)])
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def validate(model, x, y):
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main():
    torch.manual_seed(0)
    digits = load_digits()
    x_train, x_test, y_train, y_test = map(torch.tensor, train_test_split(digits.data.astype("float32"), digits.target, random_state=0))
    model = Net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(10):
        compiled.train()
        for i in range(0, len(x_train), 64):
            optimizer.zero_grad()
            loss = loss_fn(compiled(x_train[i:i + 64]), y_train[i:i + 64])
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.4f} accuracy {validate(compiled, x_test, y_test):.4f}")


if __name__ == "__main__":
    main()
