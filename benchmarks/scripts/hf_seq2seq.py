# Transformers: a T5 that reverses words; the embedding is resized after new tokens came.
# needs: transformers
# healthy: exact > 0.8
# fault: the decoder is fed its own labels, not shifted
# codes: SEQ002 SEQ001
# at: model(
# -         loss = model(input_ids=source, attention_mask=(source != PAD).long(), labels=target).loss
# +         loss = model(input_ids=source, attention_mask=(source != PAD).long(), labels=target, decoder_input_ids=target.clamp(min=0)).loss
import argparse

import torch
from transformers import T5Config, T5ForConditionalGeneration

PAD, EOS = 0, 1


def make_batch(size, generator):
    length = 5
    words = torch.randint(2, 28, (size, length), generator=generator)
    end = torch.full((size, 1), EOS)
    return torch.cat([words, end], 1), torch.cat([words.flip(1), end], 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = T5Config(
        vocab_size=20, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=PAD,
        feed_forward_proj="gated-gelu",
    )
    model = T5ForConditionalGeneration(config)
    model.resize_token_embeddings(28)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 50))
    model.train()
    for step in range(args.steps):
        source, target = make_batch(64, generator)
        loss = model(input_ids=source, attention_mask=(source != PAD).long(), labels=target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    model.eval()
    source, target = make_batch(128, generator)
    answer = model.generate(input_ids=source, max_new_tokens=6)[:, 1:7]
    answer = torch.nn.functional.pad(answer, (0, 6 - answer.shape[1]))
    print("exact", (answer == target).all(1).float().mean().item())


if __name__ == "__main__":
    main()
