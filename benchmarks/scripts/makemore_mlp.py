# makemore, second part: raw tensors for an embedding and two layers, a batch by random index, rate decay by an if.
# healthy: nll < 1
# fault: the list of parameters that are updated lacks the embedding and the first layer
# codes: GRAPH003
# at: parameters = [ | C = torch.randn | W1 = torch.randn | b1 = torch.randn
# - parameters = [C, W1, b1, W2, b2]
# + parameters = [W2, b2]
# - for p in parameters:
# -     p.requires_grad = True
# + for p in [C, W1, b1, W2, b2]:
# +     p.requires_grad = True
import random

import torch
import torch.nn.functional as F

random.seed(42)
starts, middles, ends = "al be ca da el fe ga".split(), "na ri lo mi".split(), "a en ia o us".split()
words = [random.choice(starts) + "".join(random.choices(middles, k=random.randint(0, 2))) + random.choice(ends) for _ in range(3000)]
chars = sorted(set("".join(words)))
stoi = {s: i + 1 for i, s in enumerate(chars)}
stoi["."] = 0
block_size = 3


def build_dataset(words):
    X, Y = [], []
    for w in words:
        context = [0] * block_size
        for ch in w + ".":
            ix = stoi[ch]
            X.append(context)
            Y.append(ix)
            context = context[1:] + [ix]
    return torch.tensor(X), torch.tensor(Y)


Xtr, Ytr = build_dataset(words[:2400])
Xdev, Ydev = build_dataset(words[2400:])

g = torch.Generator().manual_seed(2147483647)
C = torch.randn((len(stoi), 8), generator=g)
W1 = torch.randn((block_size * 8, 64), generator=g) * (5 / 3) / (block_size * 8) ** 0.5
b1 = torch.randn(64, generator=g) * 0.01
W2 = torch.randn((64, len(stoi)), generator=g) * 0.01
b2 = torch.randn(len(stoi), generator=g) * 0
parameters = [C, W1, b1, W2, b2]
for p in parameters:
    p.requires_grad = True

for i in range(4000):
    # minibatch construct
    ix = torch.randint(0, Xtr.shape[0], (64,), generator=g)
    emb = C[Xtr[ix]]
    h = torch.tanh(emb.view(emb.shape[0], -1) @ W1 + b1)
    logits = h @ W2 + b2
    loss = F.cross_entropy(logits, Ytr[ix])
    # backward pass
    for p in parameters:
        p.grad = None
    loss.backward()
    # update
    lr = 0.1 if i < 3000 else 0.01
    for p in parameters:
        p.data += -lr * p.grad
    if i % 500 == 0:
        print(f"{i:7d}: {loss.item():.4f}")

with torch.no_grad():
    h = torch.tanh(C[Xdev].view(len(Xdev), -1) @ W1 + b1)
    print("nll", F.cross_entropy(h @ W2 + b2, Ydev).item())
