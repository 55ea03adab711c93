# makemore: a table of bigrams as one matrix, softmax by hand, the update written as data += -rate * grad.
# healthy: nll < 2.2
# fault: the gradient is not cleared before backward
# codes: GRAPH006
# at: loss.backward() | W.data +=
# -     W.grad = None
# -     loss.backward()
# +     loss.backward()
import torch
import torch.nn.functional as F

g = torch.Generator().manual_seed(2147483647)
parts = ["an", "be", "co", "da", "el", "fi", "go", "ha", "is", "ja", "ka", "lo", "mi", "na", "or"]
lengths = torch.randint(1, 4, (2000,), generator=g).tolist()
words = ["".join(parts[i] for i in torch.randint(len(parts), (n,), generator=g)) for n in lengths]
chars = sorted(set("".join(words)))
stoi = {s: i + 1 for i, s in enumerate(chars)}
stoi["."] = 0

xs, ys = [], []
for w in words:
    chs = ["."] + list(w) + ["."]
    for ch1, ch2 in zip(chs, chs[1:]):
        xs.append(stoi[ch1])
        ys.append(stoi[ch2])
xs, ys = torch.tensor(xs), torch.tensor(ys)
num = xs.nelement()
vocab = len(stoi)
W = torch.randn((vocab, vocab), generator=g, requires_grad=True)

for k in range(150):
    # forward pass
    xenc = F.one_hot(xs, num_classes=vocab).float()
    logits = xenc @ W
    counts = logits.exp()
    probs = counts / counts.sum(1, keepdims=True)
    loss = -probs[torch.arange(num), ys].log().mean() + 0.01 * (W**2).mean()
    # backward pass
    W.grad = None
    loss.backward()
    # update
    W.data += -50 * W.grad
    if k % 10 == 0:
        print(k, loss.item())
print("nll", loss.item())
