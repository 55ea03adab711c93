# Regression on a table: pandas-free, standardised by hand, mini-batches by indexing, early stopping.
# healthy: test_r2 > 0.9
# fault: predictions [N, 1] against targets [N]: the loss is taken over all pairs
# codes: LOSS002
# at: loss_fn(model(X_train[idx])
# -         loss = loss_fn(model(X_train[idx]).squeeze(-1), y_train[idx])
# +         loss = loss_fn(model(X_train[idx]), y_train[idx])
import copy

import numpy as np
import torch
import torch.nn as nn
from sklearn.datasets import make_friedman1
from sklearn.model_selection import train_test_split

torch.manual_seed(0)
X, y = make_friedman1(n_samples=3000, n_features=8, noise=0.5, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=0.7, shuffle=True, random_state=0)
mean, std = X_train.mean(axis=0), X_train.std(axis=0)
X_train, X_test = ((a - mean) / std for a in (X_train, X_test))
y_mean, y_std = y_train.mean(), y_train.std()
X_train, X_test = torch.tensor(X_train, dtype=torch.float32), torch.tensor(X_test, dtype=torch.float32)
y_train, y_test = (torch.tensor((t - y_mean) / y_std, dtype=torch.float32) for t in (y_train, y_test))

model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))
loss_fn = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

n_epochs, batch_size, patience = 60, 50, 10
best_mse, best_weights, wait = np.inf, None, 0
for epoch in range(n_epochs):
    model.train()
    order = torch.randperm(len(X_train))
    for start in range(0, len(X_train), batch_size):
        idx = order[start:start + batch_size]
        loss = loss_fn(model(X_train[idx]).squeeze(-1), y_train[idx])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        mse = float(((model(X_test).squeeze(-1) - y_test) ** 2).mean())
    if mse < best_mse:
        best_mse, best_weights, wait = mse, copy.deepcopy(model.state_dict()), 0
    else:
        wait += 1
        if wait >= patience:
            break
model.load_state_dict(best_weights)
print("test_r2", 1 - best_mse / float(y_test.var()))
