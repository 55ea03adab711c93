# Transformers: a GPT-2 made from its configuration, trained on next words with the Trainer and its collator.
# needs: transformers accelerate datasets
# healthy: eval_loss < 1.2
# fault: the prompt is masked out of the labels, and so is the answer
# codes: SEQ003
# at: "labels" | trainer.train()
# -     return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + ids[len(prompt):]}
# +     return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(ids)}
import random

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

BOS, PLUS, EQUALS, EOS = 10, 11, 12, 13


def encode(row):
    prompt = [BOS, *map(int, str(row["a"]).zfill(2)), PLUS, *map(int, str(row["b"]).zfill(2)), EQUALS]
    ids = prompt + [*map(int, str(max(row["a"], row["b"])).zfill(2)), EOS]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + ids[len(prompt):]}


def collate(features):
    return {key: torch.tensor([f[key] for f in features]) for key in ("input_ids", "attention_mask", "labels")}


def main():
    torch.manual_seed(0)
    rng = random.Random(0)
    rows = [{"a": rng.randrange(100), "b": rng.randrange(100)} for _ in range(3000)]
    data = Dataset.from_list(rows).map(encode, remove_columns=["a", "b"]).train_test_split(test_size=0.1, seed=0)
    config = GPT2Config(vocab_size=14, n_positions=16, n_embd=64, n_layer=2, n_head=4, bos_token_id=BOS, eos_token_id=EOS)
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir="gpt2-max", max_steps=600, per_device_train_batch_size=64, per_device_eval_batch_size=64, learning_rate=2e-3,
            lr_scheduler_type="cosine", warmup_steps=30, logging_steps=50, save_steps=300, report_to="none",
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=collate,
    )
    trainer.train()
    metrics = trainer.evaluate()
    print("eval_loss", metrics["eval_loss"])


if __name__ == "__main__":
    main()
