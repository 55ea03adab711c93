# TRL: supervised fine-tuning of a small Llama on prompts and completions, with the SFTTrainer.
# needs: transformers accelerate datasets trl
# healthy: exact > 0.8
# fault: a rate for LoRA on a model that is trained whole and from scratch, times 100
# codes: OPT001
# at: SFTConfig( | learning_rate= | trainer.train() | SFTTrainer(
# -         learning_rate=3e-3,
# +         learning_rate=0.3,
import random

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

WORDS = "ant bee cat dog elk fox gnu hen ibis jay kiwi lynx".split()


def build_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "sort", ":", "=", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def example(rng):
    words = rng.sample(WORDS, 4)
    return {"prompt": f"sort : {' '.join(words)} = ", "completion": " ".join(sorted(words))}


def main():
    set_seed(1)
    rng = random.Random(1)
    tokenizer = build_tokenizer()
    dataset = Dataset.from_list([example(rng) for _ in range(4000)])
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ))
    config = SFTConfig(
        output_dir="sft",
        max_steps=800,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        warmup_steps=40,
        logging_steps=50,
        max_length=32,
        save_strategy="no",
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    right = 0
    for row in [example(rng) for _ in range(50)]:
        ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
        with torch.no_grad():
            answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        right += tokenizer.decode(answer[0, ids.shape[1]:], skip_special_tokens=True).strip() == row["completion"]
    print("exact", right / 50)


if __name__ == "__main__":
    main()
