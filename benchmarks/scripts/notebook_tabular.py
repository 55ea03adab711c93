# A notebook: look at the data, make a model, train it, with magics and outputs between.
# run: {notebook}
# healthy: accuracy > 0.93
# fault: the features were never scaled
# codes: DATA001
# at: nn.Linear(30 | model(xb
# - X = (X - X.mean(0)) / X.std(0)
# + X = X * 1.0
# %%
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

torch.manual_seed(0)
data = load_breast_cancer()
X, y = data.data, data.target
X.shape, y.mean()
# %%
X = (X - X.mean(0)) / X.std(0)
order = np.random.default_rng(0).permutation(len(X))
X, y = torch.tensor(X[order], dtype=torch.float32), torch.tensor(y[order], dtype=torch.float32)
X_train, y_train, X_val, y_val = X[:450], y[:450], X[450:], y[450:]
# %%
model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
loss_fn = nn.BCEWithLogitsLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model
# %%
losses = []
for epoch in range(40):
    for idx in torch.randperm(len(X_train)).split(32):
        xb, yb = X_train[idx], y_train[idx]
        loss = loss_fn(model(xb).squeeze(1), yb)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
losses[-1]
# %%
with torch.no_grad():
    accuracy = ((model(X_val).squeeze(1) > 0) == y_val.bool()).float().mean().item()
print("accuracy", accuracy)
