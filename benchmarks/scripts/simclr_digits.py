# SimCLR on digits: two augmented views, a projection head, NT-Xent; a nearest-neighbour probe at the end.
# healthy: knn > 0.8
# fault: normalised over the batch instead of the features
# codes: GRAPH007 LOSS004
# at: F.normalize(
# -     z = F.normalize(torch.cat([z1, z2]), dim=1)
# +     z = F.normalize(torch.cat([z1, z2]), dim=0)
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier


def augment(x):
    """Shift by up to one pixel, change the contrast, drop pixels."""
    dx, dy = torch.randint(-1, 2, (2,)).tolist()
    x = torch.roll(x, (dx, dy), dims=(2, 3))
    x = x * (0.7 + 0.6 * torch.rand(len(x), 1, 1, 1))
    return x * (torch.rand_like(x) > 0.15) + 0.05 * torch.randn_like(x)


def nt_xent(z1, z2, temperature=0.2):
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    targets = torch.cat([torch.arange(n) + n, torch.arange(n)])
    return F.cross_entropy(similarity, targets)


class SimCLR(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        )
        self.projector = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, dim))

    def forward(self, x):
        return self.projector(self.encoder(x))


def main():
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    model = SimCLR()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    epochs, batch_size = 15, 128
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (1500 // batch_size))
    for epoch in range(epochs):
        for idx in torch.randperm(1500)[: 1500 // batch_size * batch_size].view(-1, batch_size):
            z1, z2 = model(augment(images[idx])), model(augment(images[idx]))
            loss = nt_xent(z1, z2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch} loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        features = F.normalize(model(images), dim=1).numpy()
    knn = KNeighborsClassifier(10).fit(features[:1500], digits.target[:1500])
    print("knn", knn.score(features[1500:], digits.target[1500:]))


if __name__ == "__main__":
    main()
