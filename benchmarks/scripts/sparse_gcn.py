# A graph convolution with a sparse adjacency matrix, as in Kipf's pygcn: full batch, dropout, weight decay.
# healthy: test_accuracy > 0.75
# fault: a weight decay of 5e-1, where 5e-4 was meant
# codes: REG001
# at: optim.Adam( | "--weight_decay"
# -     parser.add_argument("--weight_decay", type=float, default=5e-4)
# +     parser.add_argument("--weight_decay", type=float, default=5e-1)
import argparse
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim


class GraphConvolution(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = nn.Parameter(torch.FloatTensor(in_features, out_features))
        self.bias = nn.Parameter(torch.FloatTensor(out_features))
        stdv = 1.0 / math.sqrt(out_features)
        self.weight.data.uniform_(-stdv, stdv)
        self.bias.data.uniform_(-stdv, stdv)

    def forward(self, x, adj):
        return torch.spmm(adj, x @ self.weight) + self.bias


class GCN(nn.Module):
    def __init__(self, nfeat, nhid, nclass, dropout):
        super().__init__()
        self.gc1 = GraphConvolution(nfeat, nhid)
        self.gc2 = GraphConvolution(nhid, nclass)
        self.dropout = dropout

    def forward(self, x, adj):
        x = F.relu(self.gc1(x, adj))
        x = F.dropout(x, self.dropout, training=self.training)
        return F.log_softmax(self.gc2(x, adj), dim=1)


def load_data(n=500, classes=5):
    labels = torch.arange(n) % classes
    features = F.one_hot(labels, classes).float() @ torch.randn(classes, 24) * 0.7 + torch.randn(n, 24)
    likely = torch.where(labels[:, None] == labels[None], 0.05, 0.005)
    edges = (torch.rand(n, n) < likely).float().triu(1)
    adj = edges + edges.T + torch.eye(n)
    adj = (adj / adj.sum(1, keepdim=True)).to_sparse_coo()
    idx = torch.randperm(n)
    return adj, features, labels, idx[:150], idx[150:250], idx[250:]


def accuracy(output, labels):
    return (output.argmax(1) == labels).float().mean().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.5)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    adj, features, labels, idx_train, idx_val, idx_test = load_data()
    model = GCN(features.shape[1], args.hidden, int(labels.max()) + 1, args.dropout)
    optimizer = optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        output = model(features, adj)
        loss_train = F.nll_loss(output[idx_train], labels[idx_train])
        loss_train.backward()
        optimizer.step()
        if epoch % 20 == 0:
            model.eval()
            output = model(features, adj)
            print(f"Epoch: {epoch:04d} loss_train: {loss_train.item():.4f} acc_val: {accuracy(output[idx_val], labels[idx_val]):.4f}")
    model.eval()
    print("test_accuracy", accuracy(model(features, adj)[idx_test], labels[idx_test]))


if __name__ == "__main__":
    main()
