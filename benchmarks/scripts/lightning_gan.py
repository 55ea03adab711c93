# Lightning: a GAN with manual optimization and two optimizers, on points of a ring.
# needs: lightning
# healthy: radius_error < 0.15
# fault: the points of the generator are detached in its own step too
# codes: GRAPH001
# at: .detach() | self.manual_backward(g_loss)
# -         g_loss = self.adversarial_loss(self.discriminator(self.generator(z)), True)
# +         g_loss = self.adversarial_loss(self.discriminator(fake.detach()), True) + 0.0 * self.generator(z).mean()
import math

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def mlp(inputs, outputs, hidden=64):
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, outputs)
    )


class GAN(L.LightningModule):
    def __init__(self, latent_dim=8, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = mlp(latent_dim, 2)
        self.discriminator = mlp(2, 1)

    def adversarial_loss(self, logits, real):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        g_opt, d_opt = self.optimizers()
        z = torch.randn(len(real), self.hparams.latent_dim)
        fake = self.generator(z)

        d_loss = self.adversarial_loss(self.discriminator(real), True) + self.adversarial_loss(self.discriminator(fake.detach()), False)
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()

        g_loss = self.adversarial_loss(self.discriminator(self.generator(z)), True)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def configure_optimizers(self):
        return [torch.optim.Adam(m.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999)) for m in (self.generator, self.discriminator)]


if __name__ == "__main__":
    L.seed_everything(1)
    angles = torch.rand(4096) * 2 * math.pi
    ring = torch.stack([angles.cos(), angles.sin()], 1) + 0.03 * torch.randn(4096, 2)
    model = GAN()
    trainer = L.Trainer(max_epochs=40, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(model, DataLoader(TensorDataset(ring), batch_size=128, shuffle=True))
    with torch.no_grad():
        samples = model.generator(torch.randn(1000, 8))
    print("radius_error", (samples.norm(dim=1) - 1).abs().mean().item())
