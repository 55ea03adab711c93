# nn.TransformerEncoder on padded sentences, with a padding mask and a mean over the real words.
# healthy: accuracy > 0.95
# fault: batch_first is missing: attention goes over the sentences of the batch
# codes: GRAPH007
# at: nn.TransformerEncoderLayer( | self.encoder(
# -         layer = nn.TransformerEncoderLayer(dim, nhead=4, dim_feedforward=128, dropout=0.1, batch_first=True)
# +         layer = nn.TransformerEncoderLayer(dim, nhead=4, dim_feedforward=128, dropout=0.1)
# -         h = self.encoder(h, src_key_padding_mask=pad)
# +         h = self.encoder(h)
import torch
import torch.nn as nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

PAD = 0


def make_sentences(n):
    """Does the word 5 stand before the word 9?"""
    data = []
    for _ in range(n):
        length = int(torch.randint(6, 14, (1,)))
        words = torch.randint(10, 40, (length,))
        label = int(torch.randint(0, 2, (1,)))
        a, b = sorted(torch.randperm(length)[:2].tolist())
        words[a], words[b] = (5, 9) if label else (9, 5)
        data.append((words, label))
    return data


def collate(items):
    words, labels = zip(*items)
    return pad_sequence(words, batch_first=True, padding_value=PAD), torch.tensor(labels)


class TextClassifier(nn.Module):
    def __init__(self, vocabulary=40, dim=48, max_length=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim, padding_idx=PAD)
        self.position = nn.Embedding(max_length, dim)
        layer = nn.TransformerEncoderLayer(dim, nhead=4, dim_feedforward=128, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 2)

    def forward(self, x):
        pad = x == PAD
        h = self.embed(x) + self.position(torch.arange(x.size(1)))
        h = self.encoder(h, src_key_padding_mask=pad)
        keep = (~pad).unsqueeze(-1).float()
        return self.head((h * keep).sum(1) / keep.sum(1))


def main():
    torch.manual_seed(0)
    train_loader = DataLoader(make_sentences(2000), batch_size=64, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(make_sentences(400), batch_size=100, collate_fn=collate)
    model = TextClassifier()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(10):
        model.train()
        total_loss = 0.0
        for x, y in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total_loss += loss.item()
        model.eval()
        with torch.no_grad():
            accuracy = sum((model(x).argmax(1) == y).sum().item() for x, y in test_loader) / 400
        print(f"epoch {epoch} loss {total_loss / len(train_loader):.4f} accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
