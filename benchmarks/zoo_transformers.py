"""Healthy architectures from Transformers' configurations, randomly initialised: no weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import AutoConfig
from zoo_case import BATCHES, Builder, Case, adamw, documents, images, in_batches, labels, patterned, sequences
from zoo_configs import (
    CAUSAL,
    CLASSES,
    DECODER,
    ENCODER,
    LENGTH,
    MASKED,
    SEQ2SEQ,
    SEQ2SEQ_MODELS,
    SPEECH,
    SPEECH_MODELS,
    TEXT,
    VISION,
    VIT,
    VOCABULARY,
)

transformers.logging.set_verbosity_error()

SAMPLES = 8
TOTAL = SAMPLES * BATCHES
# The automatic classes know no plain one of these.
OWN_CLASS: dict[tuple[str, str], Callable[[Any], torch.nn.Module]] = {
    ("ImageClassification", "deit"): transformers.DeiTForImageClassification,
    ("ImageClassification", "levit"): transformers.LevitForImageClassification,
}


def built(task: str, kind: str, settings: dict[str, Any]) -> torch.nn.Module:
    """A model of the given head and type, in training mode. `task` is the class name after "AutoModelFor"; settings of None are dropped."""
    config = AutoConfig.for_model(kind, **{name: value for name, value in settings.items() if value is not None})
    if (task, kind) in OWN_CLASS:
        model: torch.nn.Module = OWN_CLASS[task, kind](config)
    else:
        model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    return model.train()


def classify_text(kind: str, **settings: Any) -> Case:
    tokens, target = documents(TOTAL, LENGTH, VOCABULARY, CLASSES)
    model = built("SequenceClassification", kind, {**ENCODER, "num_labels": CLASSES, "pad_token_id": 0, **settings})
    batches = in_batches(SAMPLES, input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=target)
    return Case(model, batches, optimizer=adamw(model))


def fill_mask(kind: str, **settings: Any) -> Case:
    tokens = sequences(TOTAL, LENGTH, VOCABULARY)
    hidden = torch.rand(tokens.shape) < 0.15
    hidden[:, 3] = True
    model = built("MaskedLM", kind, {**ENCODER, "pad_token_id": 0, **settings})
    masked, target = tokens.masked_fill(hidden, 4), tokens.masked_fill(~hidden, -100)
    return Case(model, in_batches(SAMPLES, input_ids=masked, attention_mask=torch.ones_like(tokens), labels=target), optimizer=adamw(model))


def generate(kind: str, **settings: Any) -> Case:
    tokens = sequences(TOTAL, LENGTH, VOCABULARY)
    model = built("CausalLM", kind, {**DECODER, "use_cache": False, **settings})
    return Case(model, in_batches(SAMPLES, input_ids=tokens, labels=tokens.clone()), optimizer=adamw(model))


def translate(kind: str, **settings: Any) -> Case:
    tokens = sequences(TOTAL, LENGTH, VOCABULARY)
    model = built("Seq2SeqLM", kind, {**SEQ2SEQ, **settings})
    batches = in_batches(SAMPLES, input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens.flip(1)[:, :16].contiguous())
    return Case(model, batches, optimizer=adamw(model))


def see(
    kind: str,
    optimizer: Callable[..., torch.optim.Optimizer] = adamw,
    size: int = 32,
    samples: int = 16,
    unit_gains: bool = False,
    **settings: Any,
) -> Case:
    """`unit_gains` sets the gains of batch normalisations to 1, where Transformers draws them from N(0, 0.02)."""
    model = built("ImageClassification", kind, {"num_labels": 10, **settings})
    for module in model.modules():
        if unit_gains and isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    batches = [{"pixel_values": x, "labels": y} for x, y in images(samples, size)]
    return Case(model, batches, optimizer=optimizer(model))


def hear(kind: str, **settings: Any) -> Case:
    target = labels(TOTAL, CLASSES)
    model = built("AudioClassification", kind, {**SPEECH, **settings})
    batches = in_batches(SAMPLES, input_values=patterned(target, (1, 1600), CLASSES)[:, 0], labels=target)
    return Case(model, batches, optimizer=adamw(model))


def transcribe(kind: str, **settings: Any) -> Case:
    words = labels(TOTAL, CLASSES)
    target = (torch.arange(6) + 6 * words[:, None]) % 31 + 1
    model = built("CTC", kind, {**SPEECH, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True, "pad_token_id": 0, **settings})
    batches = in_batches(SAMPLES, input_values=patterned(words, (1, 1600), CLASSES)[:, 0], labels=target)
    return Case(model, batches, optimizer=adamw(model))


def speech_to_text(kind: str, features: str, frames: int, channels_first: bool, **settings: Any) -> Case:
    """Log-mel features in, tokens out."""
    words = labels(TOTAL, CLASSES)
    shape = (16, frames) if channels_first else (frames, 16)
    target = 5 + (torch.arange(8) + 8 * words[:, None]) % (VOCABULARY - 5)
    model = built("SpeechSeq2Seq", kind, {**SEQ2SEQ, **settings})
    return Case(model, in_batches(SAMPLES, **{features: patterned(words, shape, CLASSES), "labels": target}), optimizer=adamw(model))


def spectrograms() -> Case:
    target = labels(TOTAL, CLASSES)
    settings = {**VIT, "max_length": 64, "num_mel_bins": 32, "num_labels": CLASSES}
    del settings["image_size"]
    model = built("AudioClassification", "audio-spectrogram-transformer", settings)
    return Case(model, in_batches(SAMPLES, input_values=patterned(target, (64, 32), CLASSES), labels=target), optimizer=adamw(model))


def answer_about_pages(kind: str, **settings: Any) -> Case:
    """Classification of tokens with bounding boxes."""
    tokens, _ = documents(TOTAL, LENGTH, VOCABULARY, CLASSES)
    corner = torch.randint(0, 500, (TOTAL, LENGTH, 2))
    boxes = torch.cat([corner, corner + torch.randint(1, 400, (TOTAL, LENGTH, 2))], dim=-1)
    model = built("TokenClassification", kind, {**ENCODER, "num_labels": CLASSES, "pad_token_id": 0, **settings})
    target = (tokens * CLASSES // VOCABULARY).clamp(max=CLASSES - 1)
    return Case(model, in_batches(SAMPLES, input_ids=tokens, bbox=boxes, labels=target), optimizer=adamw(model))


def watch(kind: str, **settings: Any) -> Case:
    target = labels(TOTAL, CLASSES)
    frames = patterned(target, (3, 4, 32, 32), CLASSES).transpose(1, 2).contiguous()
    model = built("VideoClassification", kind, {**VIT, "num_labels": CLASSES, "num_frames": 4, **settings})
    return Case(model, in_batches(SAMPLES, pixel_values=frames, labels=target), optimizer=adamw(model))


def match(kind: str, **settings: Any) -> Case:
    """Images against their texts."""
    tokens, target = documents(TOTAL, 16, VOCABULARY, 8)
    text = {**ENCODER, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 64}
    tokens[:, -1] = 2
    config = AutoConfig.for_model(kind, text_config=text, vision_config={**VIT, "projection_dim": 64}, projection_dim=64, **settings)
    model = transformers.AutoModel.from_config(config).train()
    batches = in_batches(SAMPLES, input_ids=tokens, pixel_values=patterned(target, (3, 32, 32), 8))
    return Case(model, batches, optimizer=adamw(model), training_step=lambda m, batch: m(**batch, return_loss=True).loss)


def rebuild_images() -> Case:
    config = transformers.ViTMAEConfig(
        **{**VIT, "patch_size": 4}, decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config).train()
    return Case(model, [{"pixel_values": x} for x, _ in images(16)], optimizer=adamw(model))


def perceive() -> Case:
    config = transformers.PerceiverConfig(
        num_latents=32, d_latents=128, d_model=128, num_blocks=1, num_self_attends_per_block=4, num_self_attention_heads=4,
        num_cross_attention_heads=4, vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_labels=CLASSES,
    )  # fmt: skip
    tokens, target = documents(TOTAL, LENGTH, VOCABULARY, CLASSES)
    model = transformers.PerceiverForSequenceClassification(config).train()
    return Case(model, in_batches(SAMPLES, inputs=tokens, attention_mask=torch.ones_like(tokens), labels=target), optimizer=adamw(model))


def forecast() -> Case:
    """PatchTST on sums of sines."""
    config = transformers.PatchTSTConfig(
        num_input_channels=3, context_length=48, prediction_length=12, patch_length=8, patch_stride=8, d_model=64,
        num_hidden_layers=3, num_attention_heads=4, ffn_dim=128,
    )  # fmt: skip
    model = transformers.PatchTSTForPrediction(config).train()
    time = torch.arange(60.0)[None, :, None] * (0.1 + torch.rand(TOTAL, 1, 3)) + 6 * torch.rand(TOTAL, 1, 3)
    series = time.sin() + 0.1 * torch.randn(TOTAL, 60, 3)
    return Case(model, in_batches(SAMPLES, past_values=series[:, :48], future_values=series[:, 48:]), optimizer=adamw(model))


def ask_about_images() -> Case:
    """LXMERT, answering questions about regions of an image."""
    config = transformers.LxmertConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_attention_heads=4, intermediate_size=256, l_layers=2, x_layers=2, r_layers=2,
        num_qa_labels=10, visual_feat_dim=64, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = transformers.LxmertForQuestionAnswering(config).train()
    tokens, target = documents(TOTAL, 16, VOCABULARY, 10)
    batches = in_batches(
        SAMPLES, input_ids=tokens, visual_feats=patterned(target, (12, 64), 10), visual_pos=torch.rand(TOTAL, 12, 4), labels=target
    )
    return Case(model, batches, optimizer=adamw(model))


OTHERS: dict[str, Builder] = {
    "wav2vec2-ctc": partial(transcribe, "wav2vec2"),
    "hubert-ctc": partial(transcribe, "hubert"),
    "whisper": partial(
        speech_to_text, "whisper", "input_features", 64, True, num_mel_bins=16, max_source_positions=32, max_target_positions=32,
    ),
    "speech_to_text": partial(
        speech_to_text, "speech_to_text", "input_features", 64, False, input_feat_per_channel=16, max_source_positions=64,
        max_target_positions=32, conv_channels=64,
    ),
    "audio-spectrogram-transformer": spectrograms,
    "layoutlm": partial(answer_about_pages, "layoutlm", max_2d_position_embeddings=1024),
    "lilt": partial(answer_about_pages, "lilt", hidden_size=192, max_2d_position_embeddings=1024, channel_shrink_ratio=4),
    "timesformer": partial(watch, "timesformer"),
    "videomae": partial(watch, "videomae", tubelet_size=2),
    "clip": partial(match, "clip"),
    "siglip": partial(match, "siglip"),
    "vit_mae-pretraining": rebuild_images,
    "perceiver": perceive,
    "patchtst": forecast,
    "lxmert": ask_about_images,
}  # fmt: skip


def registry() -> dict[str, Builder]:
    cases: dict[str, Builder] = {}
    tables: list[tuple[str, Callable[..., Case], dict[str, dict[str, Any]]]] = [
        ("", classify_text, TEXT),
        ("-mlm", fill_mask, MASKED),
        ("", generate, CAUSAL),
        ("", translate, SEQ2SEQ_MODELS),
        ("", see, VISION),
        ("", hear, SPEECH_MODELS),
    ]
    for suffix, build, table in tables:
        cases |= {f"hf-{kind}{suffix}": partial(build, kind, **settings) for kind, settings in table.items()}
    return cases | {f"hf-{name}": build for name, build in OTHERS.items()}


def doubtful() -> dict[str, Builder]:
    """Faulty as shipped: no verdict on them is counted.

    EfficientNet's and MobileViT's batch normalisations start with gains from N(0, 0.02), so that the signal dies out with depth;
    MobileNet V1's configuration drops 99.9 % of the features before the head.
    """
    shipped = {
        "efficientnet": VISION["efficientnet"] | {"unit_gains": False},
        "mobilevit": VISION["mobilevit"] | {"unit_gains": False},
        "mobilenet_v1": VISION["mobilenet_v1"] | {"classifier_dropout_prob": 0.999},
    }
    return {f"hf-{kind}-as-shipped": partial(see, kind, **settings) for kind, settings in shipped.items()}
