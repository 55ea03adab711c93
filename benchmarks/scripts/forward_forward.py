# The forward-forward algorithm as in PyTorch's examples: each layer has its own optimizer and its own train().
# healthy: accuracy > 0.85
# fault: a rate a thousand times too large
# codes: OPT001
# at: Adam( | layer.train( | loss.backward()
# -         self.opt = Adam(self.parameters(), lr=0.02)
# +         self.opt = Adam(self.parameters(), lr=20.0)
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.optim import Adam


def overlay_y_on_x(x, y):
    """Put the label, one-hot, before the pixels."""
    return torch.cat([nn.functional.one_hot(y, 10).float(), x], 1)


class Layer(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.opt = Adam(self.parameters(), lr=0.02)
        self.threshold = 1.0
        self.num_epochs = 250

    def forward(self, x):
        x_direction = x / (x.norm(2, 1, keepdim=True) + 1e-4)
        return torch.relu(torch.mm(x_direction, self.weight.T) + self.bias.unsqueeze(0))

    def train(self, x_pos, x_neg):
        for i in range(self.num_epochs):
            g_pos = self.forward(x_pos).pow(2).mean(1)
            g_neg = self.forward(x_neg).pow(2).mean(1)
            # pushes the positive samples above the threshold and the negative ones below it
            loss = torch.log(1 + torch.exp(torch.cat([-g_pos + self.threshold, g_neg - self.threshold]))).mean()
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
        print("layer", tuple(self.weight.shape), "loss", loss.item())
        return self.forward(x_pos).detach(), self.forward(x_neg).detach()


class Net(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.layers = [Layer(a, b) for a, b in zip(dims, dims[1:])]

    def predict(self, x):
        goodness_per_label = []
        for label in range(10):
            h = overlay_y_on_x(x, torch.full((len(x),), label))
            goodness = []
            for layer in self.layers:
                h = layer(h)
                goodness += [h.pow(2).mean(1)]
            goodness_per_label += [sum(goodness).unsqueeze(1)]
        return torch.cat(goodness_per_label, 1).argmax(1)

    def train(self, x_pos, x_neg):
        h_pos, h_neg = x_pos, x_neg
        for layer in self.layers:
            h_pos, h_neg = layer.train(h_pos, h_neg)


if __name__ == "__main__":
    torch.manual_seed(1234)
    digits = load_digits()
    order = torch.randperm(len(digits.data))
    x, y = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
    net = Net([74, 300, 300])
    wrong = (y[:1500] + torch.randint(1, 10, (1500,))) % 10
    net.train(overlay_y_on_x(x[:1500], y[:1500]), overlay_y_on_x(x[:1500], wrong))
    print("accuracy", net.predict(x[1500:]).eq(y[1500:]).float().mean().item())
