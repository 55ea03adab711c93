# Transformers: the plain PyTorch loop of the course: DistilBERT, DataLoader, get_scheduler, a progress bar.
# needs: transformers
# healthy: accuracy > 0.9
# fault: the schedule is made for 8 epochs and stepped 8 times 47: the rate is zero from the 9th batch on
# codes: LOOP004 LOOP013
# at: get_scheduler("linear" | lr_scheduler.step()
# -     lr_scheduler = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=30, num_training_steps=num_training_steps)
# +     lr_scheduler = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=0, num_training_steps=num_epochs)
import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DistilBertConfig, DistilBertForSequenceClassification, get_scheduler


def make_rows(n, generator):
    """Which of two marker tokens comes first?"""
    rows = []
    for _ in range(n):
        length = int(torch.randint(6, 16, (1,), generator=generator))
        ids = torch.randint(4, 40, (length,), generator=generator)
        first, second = torch.randperm(length, generator=generator)[:2].tolist()
        ids[first], ids[second] = 2, 3
        rows.append({"input_ids": ids, "labels": int(first < second)})
    return rows


def collate(rows):
    ids = torch.nn.utils.rnn.pad_sequence([r["input_ids"] for r in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    correct = 0
    for batch in loader:
        correct += (model(**batch).logits.argmax(-1) == batch["labels"]).sum().item()
    model.train()
    return correct / len(loader.dataset)


def main():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    train_loader = DataLoader(make_rows(1500, generator), shuffle=True, batch_size=32, collate_fn=collate)
    test_loader = DataLoader(make_rows(300, generator), batch_size=64, collate_fn=collate)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=40, dim=64, hidden_dim=128, n_layers=2, n_heads=4, max_position_embeddings=32)
    )
    optimizer = AdamW(model.parameters(), lr=1e-3)
    num_epochs = 8
    num_training_steps = num_epochs * len(train_loader)
    lr_scheduler = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=30, num_training_steps=num_training_steps)
    print("accuracy before", evaluate(model, test_loader))
    progress_bar = tqdm(range(num_training_steps))
    for epoch in range(num_epochs):
        model.train()
        for batch in train_loader:
            outputs = model(**batch)
            outputs.loss.backward()
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            progress_bar.update(1)
        print(f"epoch {epoch} accuracy {evaluate(model, test_loader):.3f}")


if __name__ == "__main__":
    main()
