# Transformers: a BERT made from its configuration, fine-tuned on reviews with the Trainer.
# needs: transformers accelerate datasets
# healthy: accuracy > 0.9
# fault: a rate that suits no transformer
# codes: OPT001
# at: learning_rate= | trainer.train() | Trainer(
# -     args = TrainingArguments("out", num_train_epochs=6, per_device_train_batch_size=32, learning_rate=1e-3,
# +     args = TrainingArguments("out", num_train_epochs=6, per_device_train_batch_size=32, learning_rate=0.5,
import random

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import (
    BertConfig, BertForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed,
)

GOOD = "great lovely superb charming brilliant moving funny fresh".split()
BAD = "awful boring clumsy dreadful weak tedious stale silly".split()
PLAIN = "the a film plot cast scene was is with and of very this really story".split()


def review(rng):
    label = rng.randint(0, 1)
    words = rng.choices(PLAIN, k=rng.randint(6, 14))
    for _ in range(rng.randint(1, 3)):
        words.insert(rng.randrange(len(words)), rng.choice(GOOD if label else BAD))
    return {"text": " ".join(words), "label": label}


def build_tokenizer(texts):
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator(texts, WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def compute_metrics(eval_pred):
    logits, labels = eval_pred
    return {"accuracy": float((np.argmax(logits, axis=-1) == labels).mean())}


def main():
    set_seed(42)
    rng = random.Random(0)
    train, test = (Dataset.from_list([review(rng) for _ in range(n)]) for n in (1000, 200))
    tokenizer = build_tokenizer(train["text"])
    train, test = (d.map(lambda r: tokenizer(r["text"], truncation=True), batched=True) for d in (train, test))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, num_labels=2
    )
    model = BertForSequenceClassification(config)
    args = TrainingArguments("out", num_train_epochs=6, per_device_train_batch_size=32, learning_rate=1e-3,
                             warmup_steps=20, weight_decay=0.01, eval_strategy="epoch", logging_steps=20, save_strategy="no", report_to=[])
    trainer = Trainer(
        model=model, args=args, train_dataset=train, eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=compute_metrics,
    )
    trainer.train()
    print("accuracy", trainer.evaluate()["eval_accuracy"])


if __name__ == "__main__":
    main()
