# PyG: graph classification with batches of Data objects, GraphConv layers and pooling.
# needs: torch-geometric
# healthy: accuracy > 0.9
# fault: the graphs of a batch are pooled together, and every graph gets the mean of all
# codes: GRAPH007 GRAPH008 ACT004
# at: global_mean_pool(x
# -         x = global_mean_pool(x, batch)
# +         x = global_mean_pool(x, torch.zeros_like(batch)).expand(int(batch.max()) + 1, -1)
import torch
import torch.nn.functional as F
from torch.nn import Linear
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GraphConv, global_mean_pool


def random_graph(label):
    """Rings, with chords between like (1) or unlike (0) nodes."""
    n = int(torch.randint(8, 16, (1,)))
    kind = torch.randint(0, 2, (n,))
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    pairs = torch.randint(0, n, (2, 60))
    pairs = pairs[:, (kind[pairs[0]] == kind[pairs[1]]) == bool(label)][:, :12]
    edges = torch.cat([ring, ring.flip(0), pairs, pairs.flip(0)], 1)
    return Data(x=F.one_hot(kind, 2).float(), edge_index=edges, y=torch.tensor([label]))


class GNN(torch.nn.Module):
    def __init__(self, hidden_channels):
        super().__init__()
        self.conv1 = GraphConv(2, hidden_channels)
        self.conv2 = GraphConv(hidden_channels, hidden_channels)
        self.lin = Linear(hidden_channels, 2)

    def forward(self, x, edge_index, batch):
        x = self.conv1(x, edge_index).relu()
        x = self.conv2(x, edge_index).relu()
        x = global_mean_pool(x, batch)
        return self.lin(x)


def main():
    torch.manual_seed(0)
    dataset = [random_graph(i % 2) for i in range(1200)]
    train_loader = DataLoader(dataset[:1000], batch_size=64, shuffle=True)
    test_loader = DataLoader(dataset[1000:], batch_size=64)
    model = GNN(hidden_channels=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    criterion = torch.nn.CrossEntropyLoss()
    for epoch in range(1, 41):
        model.train()
        for data in train_loader:
            out = model(data.x, data.edge_index, data.batch)
            loss = criterion(out, data.y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            correct = sum(int((model(d.x, d.edge_index, d.batch).argmax(1) == d.y).sum()) for d in test_loader)
        if epoch % 5 == 0:
            print(f"Epoch: {epoch:03d}, loss {loss.item():.4f}, accuracy: {correct / 200:.4f}")


if __name__ == "__main__":
    main()
