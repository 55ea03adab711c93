# LBFGS with a closure, as in PyTorch's examples on sine waves: an LSTM cell, all series at once.
# healthy: test_loss < 0.01
# fault: the closure does not clear the gradients
# codes: GRAPH006
# at: loss.backward() | optimizer.step(closure)
# -             optimizer.zero_grad()
# -             loss = criterion(seq(inputs), target)
# +             loss = criterion(seq(inputs), target)
import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm1 = nn.LSTMCell(1, 24)
        self.linear = nn.Linear(24, 1)

    def forward(self, inputs, future=0):
        outputs = []
        h_t = torch.zeros(inputs.size(0), 24, dtype=torch.double)
        c_t = torch.zeros(inputs.size(0), 24, dtype=torch.double)
        for input_t in inputs.split(1, dim=1):
            h_t, c_t = self.lstm1(input_t, (h_t, c_t))
            output = self.linear(h_t)
            outputs += [output]
        for _ in range(future):
            h_t, c_t = self.lstm1(output, (h_t, c_t))
            output = self.linear(h_t)
            outputs += [output]
        return torch.cat(outputs, dim=1)


if __name__ == "__main__":
    np.random.seed(0)
    torch.manual_seed(0)
    x = np.arange(60)[None] + np.random.randint(-80, 80, (30, 1))
    data = np.sin(x / 8.0).astype("float64")
    inputs, target = torch.from_numpy(data[3:, :-1]), torch.from_numpy(data[3:, 1:])
    test_input, test_target = torch.from_numpy(data[:3, :-1]), torch.from_numpy(data[:3, 1:])
    seq = Sequence()
    seq.double()
    criterion = nn.MSELoss()
    optimizer = optim.LBFGS(seq.parameters(), lr=0.8)
    for i in range(6):
        print("STEP:", i)

        def closure():
            optimizer.zero_grad()
            loss = criterion(seq(inputs), target)
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            pred = seq(test_input, future=20)
            print("test_loss", criterion(pred[:, :-20], test_target).item())
