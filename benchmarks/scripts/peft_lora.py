# PEFT: LoRA adapters on a small language model, trained with the Trainer on another task than the base model's.
# needs: transformers accelerate peft
# healthy: answers > 0.9
# fault: the rate of a full fine-tuning of a large model
# codes: OPT002
# at: learning_rate= | TrainingArguments( | trainer.train()
# -             "lora-out", max_steps=600, per_device_train_batch_size=32, learning_rate=1e-3, warmup_steps=50, logging_steps=100,
# +             "lora-out", max_steps=600, per_device_train_batch_size=32, learning_rate=2e-6, warmup_steps=50, logging_steps=100,
import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import RobertaConfig, RobertaForSequenceClassification, Trainer, TrainingArguments, set_seed


class Rows(torch.utils.data.Dataset):
    """Are more of the tokens below 24 than above?"""

    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.rows = []
        for i in range(n):
            small = rng.integers(0, 6) if i % 2 else rng.integers(7, 13)
            tokens = np.concatenate([rng.integers(4, 24, small), rng.integers(24, 44, 12 - small)])
            ids = np.concatenate([[0], rng.permutation(tokens), [2]])
            self.rows.append({"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long), "labels": i % 2})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def build_base_model():
    config = RobertaConfig(
        vocab_size=44, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, max_position_embeddings=32,
        num_labels=2, pad_token_id=1,
    )
    return RobertaForSequenceClassification(config)


def accuracy(prediction):
    return {"answers": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main():
    set_seed(0)
    model = build_base_model()
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"])
    model = get_peft_model(model, config)
    model.print_trainable_parameters()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            "lora-out", max_steps=600, per_device_train_batch_size=32, learning_rate=1e-3, warmup_steps=50, logging_steps=100,
            save_strategy="no", report_to="none",
        ),
        train_dataset=Rows(4000, 0),
        eval_dataset=Rows(400, 1),
        compute_metrics=accuracy,
    )
    trainer.train()
    print("answers", trainer.evaluate()["eval_answers"])


if __name__ == "__main__":
    main()
