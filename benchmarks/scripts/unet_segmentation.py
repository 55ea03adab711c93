# A small U-Net that segments discs, with BCEWithLogitsLoss plus a Dice term.
# healthy: dice > 0.9
# fault: forward ends in a sigmoid, and BCEWithLogitsLoss applies another
# codes: LOSS001
# at: torch.sigmoid(self.out | self.bce(
# -         return self.out(d1)
# +         return torch.sigmoid(self.out(d1))
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


class Discs(Dataset):
    def __init__(self, n, size=32, seed=0):
        g = torch.Generator().manual_seed(seed)
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
        center = torch.randint(6, size - 6, (n, 2, 1, 1), generator=g)
        radius = torch.randint(3, 8, (n, 1, 1), generator=g)
        self.masks = ((grid - center).pow(2).sum(1) < radius**2).float().unsqueeze(1)
        self.images = self.masks * 0.8 + 0.5 * torch.randn(self.masks.shape, generator=g)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.masks[i]


class DoubleConv(nn.Sequential):
    def __init__(self, i, o):
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    def __init__(self, c=8):
        super().__init__()
        self.down1, self.down2, self.middle = DoubleConv(1, c), DoubleConv(c, 2 * c), DoubleConv(2 * c, 4 * c)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * c, 2 * c, 2, 2), nn.ConvTranspose2d(2 * c, c, 2, 2)
        self.dec2, self.dec1 = DoubleConv(4 * c, 2 * c), DoubleConv(2 * c, c)
        self.out = nn.Conv2d(c, 1, 1)

    def forward(self, x):
        s1 = self.down1(x)
        s2 = self.down2(F.max_pool2d(s1, 2))
        m = self.middle(F.max_pool2d(s2, 2))
        d2 = self.dec2(torch.cat([self.up2(m), s2], 1))
        d1 = self.dec1(torch.cat([self.up1(d2), s1], 1))
        return self.out(d1)


class SegmentationLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.bce = nn.BCEWithLogitsLoss()

    def forward(self, logits, target):
        p = logits.sigmoid()
        dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        return self.bce(logits, target) + 0.2 * dice


def dice_score(logits, target):
    p = (logits > 0).float()
    return (2 * (p * target).sum() / (p.sum() + target.sum())).item()


def main():
    torch.manual_seed(0)
    loader = DataLoader(Discs(512), batch_size=16, shuffle=True)
    test = Discs(64, seed=1)
    net, criterion = UNet(), SegmentationLoss()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for epoch in range(5):
        net.train()
        for images, masks in loader:
            optimizer.zero_grad()
            loss = criterion(net(images), masks)
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            print(f"epoch {epoch} loss {loss.item():.4f} dice {dice_score(net(test.images), test.masks):.4f}")


if __name__ == "__main__":
    main()
