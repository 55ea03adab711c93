# Translation with an encoder, an attention decoder and teacher forcing, as in PyTorch's tutorial.
# healthy: exact > 0.8
# fault: the decoder is fed the word that it is to say, not the one before
# codes: SEQ002 SEQ001
# at: decoder( | self.embed( | previous = | F.cross_entropy(
# -         previous = torch.cat([torch.full((len(target), 1), SOS), target[:, :-1]], 1)
# +         previous = target
import torch
import torch.nn as nn
import torch.nn.functional as F

SOS, EOS, WORDS, LENGTH = 0, 1, 16, 6


class Encoder(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.join = nn.Linear(2 * hidden, hidden)

    def forward(self, x):
        output, _ = self.gru(self.embedding(x))
        return torch.tanh(self.join(output))


class AttnDecoder(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, hidden)
        self.cell = nn.GRUCell(2 * hidden, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.out = nn.Linear(2 * hidden, WORDS)

    def forward(self, memory, previous=None):
        h = memory.mean(1)
        word = torch.full((len(memory),), SOS)
        logits = []
        for t in range(LENGTH + 1):
            if previous is not None:
                word = previous[:, t]  # teacher forcing
            scores = torch.bmm(memory, self.query(h).unsqueeze(2)).squeeze(2) / memory.size(-1) ** 0.5
            context = torch.bmm(scores.softmax(1).unsqueeze(1), memory).squeeze(1)
            h = self.cell(torch.cat([self.embedding(word), context], 1), h)
            logits.append(self.out(torch.cat([h, context], 1)))
            word = logits[-1].argmax(1)
        return torch.stack(logits, 1)


def pairs(n):
    """The translation: the words in reverse, each one moved by one."""
    source = torch.randint(2, WORDS, (n, LENGTH))
    target = (source.flip(1) - 2 + 1) % (WORDS - 2) + 2
    return source, torch.cat([target, torch.full((n, 1), EOS)], 1)


def main():
    torch.manual_seed(0)
    encoder, decoder = Encoder(), AttnDecoder()
    encoder_optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    decoder_optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for step in range(700):
        source, target = pairs(64)
        encoder_optimizer.zero_grad()
        decoder_optimizer.zero_grad()
        previous = torch.cat([torch.full((len(target), 1), SOS), target[:, :-1]], 1)
        logits = decoder(encoder(source), previous)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        loss.backward()
        for model in (encoder, decoder):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        encoder_optimizer.step()
        decoder_optimizer.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    with torch.no_grad():
        source, target = pairs(200)
        print("exact", (decoder(encoder(source)).argmax(-1) == target).all(1).float().mean().item())


if __name__ == "__main__":
    main()
