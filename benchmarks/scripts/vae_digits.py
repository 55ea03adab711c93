# A variational autoencoder on digits, as in PyTorch's examples: reparametrisation, BCE plus KL, summed.
# healthy: reconstruction < 23
# fault: the reconstruction is averaged over all pixels, the KL summed: the code collapses
# codes: LOSS010 ACT004
# at: BCE = F.binary_cross_entropy | KLD = | return BCE + KLD | return (BCE + KLD)
# -     BCE = F.binary_cross_entropy(recon_x, x, reduction="sum")
# +     BCE = F.binary_cross_entropy(recon_x, x) * len(x)
import torch
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc21 = nn.Linear(128, 8)
        self.fc22 = nn.Linear(128, 8)
        self.fc3 = nn.Linear(8, 128)
        self.fc4 = nn.Linear(128, 64)

    def encode(self, x):
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def decode(self, z):
        h3 = F.relu(self.fc3(z))
        return torch.sigmoid(self.fc4(h3))

    def forward(self, x):
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar)
        return self.decode(z), mu, logvar


def loss_function(recon_x, x, mu, logvar):
    BCE = F.binary_cross_entropy(recon_x, x, reduction="sum")
    KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return BCE + KLD


def main():
    torch.manual_seed(1)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    train_loader = DataLoader(TensorDataset(images[:1600]), batch_size=64, shuffle=True)
    model = VAE()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(1, 41):
        model.train()
        train_loss = 0
        for (data,) in train_loader:
            optimizer.zero_grad()
            recon_batch, mu, logvar = model(data)
            loss = loss_function(recon_batch, data, mu, logvar)
            loss.backward()
            train_loss += loss.item()
            optimizer.step()
        print(f"====> Epoch: {epoch} Average loss: {train_loss / 1600:.4f}")
    with torch.no_grad():
        recon, _, _ = model(images[1600:])
        print("reconstruction", F.binary_cross_entropy(recon, images[1600:], reduction="sum").item() / 197)


if __name__ == "__main__":
    main()
