# TRL: reinforcement with the GRPOTrainer: a small GPT-2 is rewarded for even tokens.
# needs: transformers accelerate datasets trl
# healthy: reward > 0.8
# fault: the reward looks at the prompt, which all completions of a group share
# codes: LOSS008 GRAD004
# at: trainer.train() | GRPOTrainer( | def reward_even
# -     return [sum(int(word) % 2 == 0 for word in text.split()) / max(1, len(text.split())) for text in completions]
# +     return [sum(int(word) % 2 == 0 for word in text.split()) / max(1, len(text.split())) for text in kwargs.get("prompts", completions)]
import random

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer


def build_tokenizer():
    vocabulary = {"<pad>": 0, "</s>": 1} | {str(i): i + 2 for i in range(20)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="left")


def reward_even(completions, **kwargs):
    return [sum(int(word) % 2 == 0 for word in text.split()) / max(1, len(text.split())) for text in completions]


def main():
    set_seed(0)
    rng = random.Random(0)
    tokenizer = build_tokenizer()
    prompts = Dataset.from_list([{"prompt": " ".join(str(rng.randrange(20)) for _ in range(3))} for _ in range(400)])
    config = GPT2Config(
        vocab_size=22, n_positions=32, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    args = GRPOConfig(
        output_dir="grpo", max_steps=150, per_device_train_batch_size=32, num_generations=8, max_completion_length=6, learning_rate=3e-3,
        logging_steps=10, save_strategy="no", report_to="none", bf16=False, beta=0.0, gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(model=model, reward_funcs=reward_even, args=args, train_dataset=prompts, processing_class=tokenizer)
    trainer.train()
    ids = tokenizer(prompts["prompt"][:64], return_tensors="pt").input_ids
    with torch.no_grad():
        answers = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=True)[:, ids.shape[1]:]
    print("reward", sum(reward_even(tokenizer.batch_decode(answers, skip_special_tokens=True))) / 64)


if __name__ == "__main__":
    main()
