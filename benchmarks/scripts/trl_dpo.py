# TRL: preferences on a small Qwen with the DPOTrainer: of two completions the polite one is chosen.
# needs: transformers accelerate datasets trl
# healthy: preferred > 0.9
# fault: the column of the chosen completion was filled with the rejected one
# codes: LOSS008 GRAD004
# at: "chosen": | trainer.train() | DPOTrainer(
# -     return {"prompt": prompt, "chosen": polite, "rejected": rude}
# +     return {"prompt": prompt, "chosen": rude, "rejected": rude}
import copy
import random

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import DPOConfig, DPOTrainer

PLACES = "park shop bank school museum station".split()
POLITE, RUDE = "please take the next left".split(), "get lost find it yourself".split()
VOCABULARY = ["<pad>", "</s>", "<unk>", "where", "is", "the", "?", *PLACES, *POLITE, *RUDE]


def build_tokenizer():
    words = list(dict.fromkeys(VOCABULARY))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def pair(rng):
    prompt = f"where is the {rng.choice(PLACES)} ? "
    polite, rude = " ".join(POLITE[: rng.randint(2, 5)]), " ".join(RUDE[: rng.randint(2, 5)])
    return {"prompt": prompt, "chosen": polite, "rejected": rude}


def main():
    set_seed(0)
    rng = random.Random(0)
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    args = DPOConfig(
        output_dir="dpo", max_steps=200, per_device_train_batch_size=16, learning_rate=5e-4, beta=0.1, logging_steps=20, save_strategy="no",
        report_to="none", bf16=False, gradient_checkpointing=False,
    )
    dataset = Dataset.from_list([pair(rng) for _ in range(1000)])
    trainer = DPOTrainer(model=model, ref_model=copy.deepcopy(model), args=args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    model.eval()
    wins = 0
    for _ in range(40):
        row = pair(rng)
        scores = []
        for completion in (" ".join(POLITE[:3]), " ".join(RUDE[:3])):
            ids = tokenizer(row["prompt"] + completion, return_tensors="pt").input_ids
            with torch.no_grad():
                logp = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
            scores.append(logp[-3:].sum().item())
        wins += scores[0] > scores[1] + 1
    print("preferred", wins / 40)


if __name__ == "__main__":
    main()
