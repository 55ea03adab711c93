# A vision transformer on digits: patches by unfold, a class token, stochastic depth, AdamW with warm-up.
# healthy: accuracy > 0.88
# fault: heads are cut with view where the tokens should be moved: tokens and heads get mixed
# codes: GRAPH007 SEQ001 ACT006
# at: .view(
# -         q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
# +         q, k, v = self.qkv(x).view(3, B, self.heads, N, D // self.heads)
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class DropPath(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        keep = (torch.rand(len(x), 1, 1) >= self.p).float()
        return x * keep / (1 - self.p)


class Block(nn.Module):
    def __init__(self, dim, heads, drop):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.drop = DropPath(drop)

    def forward(self, x):
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    def __init__(self, patch=2, dim=64, depth=4, heads=4, classes=10):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.blocks = nn.Sequential(*[Block(dim, heads, 0.1 * i / (depth - 1)) for i in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


def main():
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.images))
    x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 8 - 1, torch.tensor(digits.target)[order]
    model = ViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=40)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25 * 23 - 40)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [40])
    for epoch in range(25):
        model.train()
        for idx in torch.randperm(1472).view(-1, 64):
            loss = F.cross_entropy(model(x[idx]), y[idx])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            print(f"epoch {epoch} loss {loss.item():.4f} accuracy {(model(x[1500:]).argmax(1) == y[1500:]).float().mean():.4f}")


if __name__ == "__main__":
    main()
