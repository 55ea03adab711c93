"""Inputs and labels for models of the Transformers library, from their configurations. The library itself is not imported."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from gradcheck.workload.step import first_tensor, forward_of

_TOKENS = (4, 32)  # [B, T]
_IMAGES = 4
_SAMPLES = (2, 16000)  # [B, samples]: one second at 16 kHz
# The lowest ids are often special: padding, beginning, end.
_FIRST_ORDINARY_TOKEN = 5

Maker = Callable[[torch.Generator], dict[str, Any]]


def is_transformer(model: nn.Module) -> bool:
    return any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__) and hasattr(model, "config")


def transformer_inputs(model: Any) -> Iterator[tuple[Maker, str]]:
    """Makers of keyword arguments, most likely first, with words for each."""
    name = getattr(model, "main_input_name", "input_ids")
    makers = {
        "pixel_values": _pixels,
        "pixel_values_videos": _pixels,
        "input_values": _waves,
        "input_features": _spectra,
        "past_values": _series,
    }
    main = list(makers.get(name, _tokens)(model.config, name))
    forward = forward_of(model)
    if name == "input_ids" and forward.accepts("pixel_values"):  # text and image together
        main = [*_both(main, _pixels(model.config, "pixel_values")), *main]
    if name == "pixel_values" and forward.accepts("input_ids"):
        main += _both(main, _tokens(model.config, "input_ids"))
    for maker, words in main:
        if getattr(model.config, "is_encoder_decoder", False) and forward.accepts("decoder_input_ids"):
            decoder = next(_tokens(model.config, "decoder_input_ids"))[0]
            yield _merged(maker, decoder), f"{words} and as many decoder_input_ids"
        if forward.accepts("return_loss"):
            yield _merged(maker, lambda generator: {"return_loss": True}), words
        yield maker, words
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping):
        yield (
            (lambda generator: {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in dummy.items()}),
            "its dummy_inputs",
        )


def _both(main: list[tuple[Maker, str]], others: Iterable[tuple[Maker, str]]) -> list[tuple[Maker, str]]:
    return [(_merged(one, other), f"{a}, {b}") for (one, a), (other, b) in zip(main, others, strict=False)]


def _merged(one: Maker, other: Maker) -> Maker:
    return lambda generator: {**one(generator), **other(generator)}


def _setting(config: Any, *names: str, default: Any = None) -> Any:
    """The first of the settings that the configuration, or the one of a part of it, has."""
    parts = [config, *(getattr(config, part, None) for part in ("text_config", "vision_config", "decoder", "encoder", "backbone_config"))]
    for part in parts:
        for name in names:
            value = part.get(name) if isinstance(part, dict) else getattr(part, name, None)
            if value is not None:
                return value
    return default


def _tokens(config: Any, name: str) -> Iterator[tuple[Maker, str]]:
    vocabulary = int(_setting(config, "vocab_size", default=100))
    longest = int(_setting(config, "max_position_embeddings", "n_positions", "max_seq_len", default=_TOKENS[1]))
    longest = longest if longest > 1 else _TOKENS[1]  # XLNet says -1: any
    first = _FIRST_ORDINARY_TOKEN if vocabulary > 4 * _FIRST_ORDINARY_TOKEN else 0
    length = max(2, min(_TOKENS[1], longest - 4 if longest > 8 else longest))
    # Some heads take one row only, when no padding token is set; multiple choice has an axis for the choices.
    for shape in ((_TOKENS[0], length), (1, length), (_TOKENS[0], 2, length)):

        def maker(generator: torch.Generator, shape: tuple[int, ...] = shape) -> dict[str, Any]:
            return {name: torch.randint(first, vocabulary, shape, generator=generator, device="cpu")}

        yield maker, f"{name} int64<{vocabulary}>{list(shape)}"


def _pixels(config: Any, name: str) -> Iterator[tuple[Maker, str]]:
    size = _setting(config, "image_size", "input_size", default=64)
    sides = (size["height"], size["width"]) if isinstance(size, dict) else size
    height, width = (sides, sides) if isinstance(sides, int) else tuple(sides)[-2:]
    channels = int(_setting(config, "num_channels", "in_channels", default=3))
    frames = _setting(config, "num_frames")
    shapes: list[tuple[int, ...]] = [(2, int(frames), channels, height, width)] if isinstance(frames, int) else []
    shapes += [(_IMAGES, channels, height, width), (_IMAGES, channels, 64, 64), (2, channels, 224, 224)]
    for shape in shapes:
        yield _normal(name, shape), f"{name} float32{list(shape)}"


def _waves(config: Any, name: str) -> Iterator[tuple[Maker, str]]:
    bins = _setting(config, "num_mel_bins")
    frames = _setting(config, "max_length")
    if isinstance(bins, int) and isinstance(frames, int) and frames > 20:
        yield _normal(name, (2, frames, bins)), f"{name} float32{[2, frames, bins]}"
    yield _normal(name, _SAMPLES), f"{name} float32{list(_SAMPLES)}"


def _spectra(config: Any, name: str) -> Iterator[tuple[Maker, str]]:
    bins = int(_setting(config, "num_mel_bins", "input_feat_per_channel", "feature_size", "feature_projection_input_dim", default=80))
    positions = _setting(config, "max_source_positions")
    shapes = [(2, bins, 2 * positions)] if isinstance(positions, int) and positions <= 1500 else []
    for shape in (*shapes, (2, 128, bins), (2, bins, 128)):
        yield _normal(name, shape), f"{name} float32{list(shape)}"


def _series(config: Any, name: str) -> Iterator[tuple[Maker, str]]:
    length, channels = int(_setting(config, "context_length", default=32)), int(_setting(config, "num_input_channels", default=1))
    yield _normal(name, (_TOKENS[0], length, channels)), f"{name} float32{[_TOKENS[0], length, channels]}"


def _normal(name: str, shape: tuple[int, ...]) -> Maker:
    return lambda generator: {name: torch.randn(shape, generator=generator, device="cpu")}


def transformer_labels(model: Any, inputs: Mapping[str, Any], output: Any, generator: torch.Generator) -> tuple[dict[str, Any], str] | None:
    """(labels by argument name, words for them) with which the model computes its own loss; None when its head is not known."""
    forward, kind, config = forward_of(model), type(model).__name__, model.config
    main = inputs.get("input_ids")
    if forward.accepts("start_positions") and isinstance(main, torch.Tensor):
        length, samples_ = main.shape[-1], main.shape[:1]
        names = ("start_positions", "end_positions")
        spans = {name: torch.randint(length, samples_, generator=generator, device="cpu") for name in names}
        return spans, "random answer spans"
    if not forward.accepts("labels"):
        return None
    classes = int(getattr(config, "num_labels", 2))
    samples = next((v.shape[0] for v in inputs.values() if isinstance(v, torch.Tensor) and v.ndim), 1)
    if kind.endswith(("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForPreTraining")) and isinstance(main, torch.Tensor):
        scores = first_tensor(output)
        if scores.shape == main.shape:  # real or replaced: one score for each token
            return {"labels": torch.randint(2, tuple(main.shape), generator=generator, device="cpu")}, "random zeros and ones as labels"
        labels = {"labels": _without_padding(main, inputs.get("attention_mask"))}
        if forward.accepts("next_sentence_label"):
            labels["next_sentence_label"] = torch.randint(2, (samples,), generator=generator, device="cpu")
        return labels, "the tokens themselves as labels"
    if kind.endswith("ForCTC"):
        return {"labels": torch.randint(1, int(config.vocab_size), (samples, 8), generator=generator, device="cpu")}, "random labels"
    if kind.endswith(("ForConditionalGeneration", "ForSpeechSeq2Seq")):
        decoder = inputs.get("decoder_input_ids", main)
        return ({"labels": decoder.clone()}, "the decoder's tokens as labels") if isinstance(decoder, torch.Tensor) else None
    if kind.endswith("ForSemanticSegmentation"):
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return None
        return {"labels": torch.randint(classes, (samples, *pixels.shape[-2:]), generator=generator, device="cpu")}, "random labels"
    if kind.endswith(("Classification", "ForNextSentencePrediction", "ForMultipleChoice", "ClassificationWithTeacher")):
        scores = first_tensor(output)
        if scores.shape[-1] == 1:
            return {"labels": torch.randn(scores.shape[:-1], generator=generator, device="cpu")}, "random numbers as labels"
        return {"labels": torch.randint(scores.shape[-1], tuple(scores.shape[:-1]), generator=generator, device="cpu")}, "random labels"
    return None


def _without_padding(tokens: torch.Tensor, mask: Any) -> torch.Tensor:
    return tokens.masked_fill(mask == 0, -100) if isinstance(mask, torch.Tensor) and mask.shape == tokens.shape else tokens.clone()
