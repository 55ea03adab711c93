# LightningCLI: fit from the command line, the optimizer among the arguments.
# needs: lightning jsonargparse
# run: {script} -- fit --trainer.max_epochs 12 --trainer.accelerator cpu --trainer.logger false --model.width 96
# healthy: val_mse < 0.02
# fault: the target has the shape [N], the output [N, 1]: the loss is taken over all pairs
# codes: LOSS002
# at: F.mse_loss(
# -         return F.mse_loss(self.net(x).squeeze(1), y)
# +         return F.mse_loss(self.net(x), y)
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Waves(LightningDataModule):
    """y = sin(3 a) + b c"""

    def __init__(self, samples: int = 4000, batch_size: int = 64):
        super().__init__()
        self.samples, self.batch_size = samples, batch_size

    def setup(self, stage: str):
        x = torch.rand(self.samples, 3) * 2 - 1
        y = torch.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]
        split = self.samples * 9 // 10
        self.train, self.val = TensorDataset(x[:split], y[:split]), TensorDataset(x[split:], y[split:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=512)


class Regressor(LightningModule):
    def __init__(self, width: int = 64, depth: int = 3, lr: float = 3e-3):
        super().__init__()
        layers = [nn.Linear(3, width), nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))
        self.lr = lr

    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self.net(x).squeeze(1), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", (self.net(x).squeeze(1) - y).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


if __name__ == "__main__":
    cli = LightningCLI(Regressor, Waves, seed_everything_default=3)
    print("val_mse", cli.trainer.callback_metrics["val_mse"].item())
