# An exponential average of the whole state beside a net with batch normalization; the average is what is evaluated.
# healthy: accuracy > 0.95
# fault: the average follows the parameters, not the running statistics
# codes: LOOP012 NORM005 NORM006
# at: zip(self.module.parameters() | EMA(model | copy.deepcopy | average.lerp_ | ema.update(
# -         for average, value in zip(self.module.state_dict().values(), model.state_dict().values()):
# +         for average, value in zip(self.module.parameters(), model.parameters()):
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def conv_block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class EMA:
    def __init__(self, model, decay):
        self.module, self.decay = copy.deepcopy(model).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model):
        for average, value in zip(self.module.state_dict().values(), model.state_dict().values()):
            if value.is_floating_point():
                average.lerp_(value, 1 - self.decay)
            else:
                average.copy_(value)


def evaluate(model, x, y):
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main():
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) - 5, torch.tensor(digits.target)
    x = x / 6
    loader = DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=50, shuffle=True, drop_last=True)
    model = nn.Sequential(
        conv_block(1, 16), nn.MaxPool2d(2), conv_block(16, 32), conv_block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    ema = EMA(model, decay=0.98)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(8):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            ema.update(model)
        print(f"epoch {epoch} loss {loss.item():.4f} raw {evaluate(model, x[1500:], y[1500:]):.4f}")
    print("accuracy", evaluate(ema.module, x[1500:], y[1500:]))


if __name__ == "__main__":
    main()
