# A VQ-VAE on digits with the straight-through estimator and a commitment loss.
# healthy: mse < 0.03
# fault: no straight-through: the decoder gets the bare codes, and the encoder no gradient of the reconstruction
# codes: GRAPH001 LOSS009
# at: q.detach() | self.decoder( | self.codebook(
# -         return self.decoder(z + (q - z).detach()), codebook_loss
# +         return self.decoder(q.detach()), self.codebook_loss(q, z.detach())
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


class VQVAE(nn.Module):
    def __init__(self, codes=64, dim=8, parts=8):
        super().__init__()
        self.parts = parts
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, parts * dim))
        self.codebook = nn.Embedding(codes, dim)
        nn.init.normal_(self.codebook.weight, std=0.3)
        self.decoder = nn.Sequential(nn.Flatten(1), nn.Linear(parts * dim, 128), nn.ReLU(), nn.Linear(128, 64))

    def codebook_loss(self, q, z, beta=0.25):
        return F.mse_loss(q, z.detach()) + beta * F.mse_loss(z, q.detach())

    def forward(self, x):
        z = self.encoder(x).view(len(x), self.parts, -1)
        with torch.no_grad():
            index = torch.cdist(z.flatten(0, 1), self.codebook.weight).argmin(1).view(len(x), self.parts)
        q = self.codebook(index)
        codebook_loss = self.codebook_loss(q, z)
        return self.decoder(z + (q - z).detach()), codebook_loss


def main():
    torch.manual_seed(0)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    model = VQVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(2000):
        x = images[torch.randint(0, 1600, (64,))]
        reconstruction, codebook_loss = model(x)
        loss = F.mse_loss(reconstruction, x) + codebook_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 250 == 0:
            print(f"step {step} loss {loss.item():.4f} codebook {codebook_loss.item():.4f}")
    with torch.no_grad():
        print("mse", F.mse_loss(model(images[1600:])[0], images[1600:]).item())


if __name__ == "__main__":
    main()
