# PyG: a graph convolutional net for the nodes of one graph, with masks.
# needs: torch-geometric
# healthy: test > 0.8
# fault: twelve convolutions in a row: all nodes become one point
# codes: ACT004 GRAD001 LOSS005
# at: GCNConv( | GCN( | F.cross_entropy( | model(data
# -     model = GCN(data.num_features, 32, int(data.y.max()) + 1, layers=2)
# +     model = GCN(data.num_features, 32, int(data.y.max()) + 1, layers=16)
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
from torch_geometric.utils import to_undirected


def community_graph(nodes=600, classes=4, degree=6):
    y = torch.arange(nodes) % classes
    x = F.one_hot(y, classes).float() @ torch.randn(classes, 16) + 2.0 * torch.randn(nodes, 16)
    source = torch.arange(nodes).repeat_interleave(degree)
    same = torch.rand(len(source)) < 0.8
    like = torch.randint(0, nodes // classes, source.shape) * classes + y[source]
    target = torch.where(same, like, torch.randint(0, nodes, source.shape))
    data = Data(x=x, edge_index=to_undirected(torch.stack([source, target])), y=y)
    order = torch.randperm(nodes)
    data.train_mask, data.test_mask = torch.zeros(nodes, dtype=torch.bool), torch.zeros(nodes, dtype=torch.bool)
    data.train_mask[order[:120]] = True
    data.test_mask[order[300:]] = True
    return data


class GCN(torch.nn.Module):
    def __init__(self, in_channels, hidden_channels, out_channels, layers):
        super().__init__()
        sizes = [in_channels] + [hidden_channels] * (layers - 1) + [out_channels]
        self.convs = torch.nn.ModuleList(GCNConv(a, b, cached=True) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x, edge_index):
        for conv in self.convs[:-1]:
            x = F.dropout(F.relu(conv(x, edge_index)), p=0.5, training=self.training)
        return self.convs[-1](x, edge_index)


def main():
    torch.manual_seed(12345)
    data = community_graph()
    model = GCN(data.num_features, 32, int(data.y.max()) + 1, layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)

    def train():
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        return float(loss)

    @torch.no_grad()
    def test():
        model.eval()
        pred = model(data.x, data.edge_index).argmax(dim=-1)
        return [float((pred[mask] == data.y[mask]).float().mean()) for mask in (data.train_mask, data.test_mask)]

    for epoch in range(1, 201):
        loss = train()
        if epoch % 20 == 0:
            train_acc, test_acc = test()
            print(f"Epoch: {epoch:03d}, Loss: {loss:.4f}, Train: {train_acc:.4f}, test: {test_acc:.4f}")


if __name__ == "__main__":
    main()
