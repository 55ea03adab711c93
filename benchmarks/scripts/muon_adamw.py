# Muon for the matrices beside AdamW for the rest, on a small transformer that copies.
# healthy: accuracy > 0.95
# fault: AdamW gets the vectors only: embedding, positions and head are in neither optimizer
# codes: GRAPH003
# at: AdamW( | others = | self.positions = | self.embed = | self.head =
# -     others = [p for p in model.parameters() if id(p) not in ids]
# +     others = [p for p in model.parameters() if p.ndim < 2]
import torch
import torch.nn as nn
import torch.nn.functional as F


def newton_schulz(G, steps=5, eps=1e-7):
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G / (G.norm() + eps)
    if G.size(0) > G.size(1):
        X = X.T
    for _ in range(steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X.T if G.size(0) > G.size(1) else X


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02, momentum=0.95, nesterov=True):
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buf = state["momentum_buffer"]
                buf.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(buf, group["momentum"]) if group["nesterov"] else buf
                update = newton_schulz(g) * max(1, p.size(0) / p.size(1)) ** 0.5
                p.add_(update, alpha=-group["lr"])


class Model(nn.Module):
    """Answers, at each place of the second half, what stood there in the first."""

    def __init__(self, vocabulary=24, dim=48, length=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, x):
        h = self.embed(x) + self.positions[: x.size(1)]
        mask = nn.Transformer.generate_square_subsequent_mask(x.size(1))
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        return self.head(self.norm(h))


def batch(n=64):
    first = torch.randint(1, 24, (n, 8))
    return torch.cat([first, torch.zeros_like(first)], 1), first


def main():
    torch.manual_seed(0)
    model = Model()
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    optimizers = [Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3, weight_decay=0.01)]
    for step in range(800):
        x, y = batch()
        loss = F.cross_entropy(model(x)[:, 8:].flatten(0, 1), y.flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    with torch.no_grad():
        x, y = batch(256)
        print("accuracy", (model(x)[:, 8:].argmax(-1) == y).float().mean().item())


if __name__ == "__main__":
    main()
