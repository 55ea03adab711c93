# PyTorch's word_language_model in small: a two-layer LSTM, SGD at rate 20 with clipping, hidden state kept from batch to batch.
# healthy: val_loss < 1
# fault: the gradients are clipped after the step
# codes: LOOP002
# at: clip_grad_norm_
# -             torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
# -             for p in model.parameters():
# -                 p.data.add_(p.grad, alpha=-lr)
# +             for p in model.parameters():
# +                 p.data.add_(p.grad, alpha=-lr)
# +             torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
import math

import torch
import torch.nn as nn

PHRASES = (
    ["the old man", "a young girl", "my friend", "the dog"], ["sees", "loves", "calls", "follows"],
    ["the sea", "a red bird", "her house"], ["today .", "again and again .", "."],
)


class RNNModel(nn.Module):
    def __init__(self, ntoken, ninp=48, nhid=48, nlayers=2, dropout=0.1):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.ntoken, self.nlayers, self.nhid = ntoken, nlayers, nhid

    def forward(self, x, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(x)), hidden)
        return self.decoder(self.drop(output)).view(-1, self.ntoken), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        return weight.new_zeros(self.nlayers, bsz, self.nhid), weight.new_zeros(self.nlayers, bsz, self.nhid)


def repackage_hidden(h):
    return h.detach() if isinstance(h, torch.Tensor) else tuple(repackage_hidden(v) for v in h)


def batchify(data, bsz):
    nbatch = data.size(0) // bsz
    return data.narrow(0, 0, nbatch * bsz).view(bsz, -1).t().contiguous()


def main(lr=20, epochs=8, bptt=20):
    torch.manual_seed(1111)
    words = " ".join(part[int(torch.randint(len(part), (1,)))] for _ in range(4000) for part in PHRASES).split()
    vocabulary = sorted(set(words))
    ids = torch.tensor([vocabulary.index(w) for w in words])
    split = len(ids) * 9 // 10
    train_data, val_data = batchify(ids[:split], 20), batchify(ids[split:], 10)
    model = RNNModel(len(vocabulary))
    criterion = nn.CrossEntropyLoss()

    def evaluate(data):
        model.eval()
        total, hidden = 0.0, model.init_hidden(10)
        with torch.no_grad():
            for i in range(0, data.size(0) - 1, bptt):
                n = min(bptt, len(data) - 1 - i)
                output, hidden = model(data[i : i + n], hidden)
                total += n * criterion(output, data[i + 1 : i + 1 + n].reshape(-1)).item()
        return total / (len(data) - 1)

    best_val_loss = None
    for epoch in range(1, epochs + 1):
        model.train()
        hidden = model.init_hidden(20)
        for i in range(0, train_data.size(0) - 1, bptt):
            n = min(bptt, len(train_data) - 1 - i)
            model.zero_grad()
            hidden = repackage_hidden(hidden)
            output, hidden = model(train_data[i : i + n], hidden)
            loss = criterion(output, train_data[i + 1 : i + 1 + n].reshape(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            for p in model.parameters():
                p.data.add_(p.grad, alpha=-lr)
        val_loss = evaluate(val_data)
        print(f"| end of epoch {epoch:3d} | val_loss {val_loss:5.2f} | ppl {math.exp(min(val_loss, 20)):8.2f}")
        if not best_val_loss or val_loss < best_val_loss:
            best_val_loss = val_loss
        else:
            lr /= 4.0


if __name__ == "__main__":
    main()
