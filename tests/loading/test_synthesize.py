"""Inputs that are made up from a model's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading.objects import from_objects
from gradcheck.workload.step import split


class Recurrent(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(7, 8, batch_first=first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x)
        return self.head(output.mean(1 if self.rnn.batch_first else 0))


class Positions(nn.Module):
    """Looks up positions below 12 in an embedding, as small language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 8), nn.Embedding(12, 8)
        self.head = nn.Linear(8, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.head(self.left(user) * self.right(item))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def convolutions(size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (size // 2) ** 2, 5))


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(9, 2), (32, 9)),
    "flatten first": (nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), (32, 784)),
    "convolution of any size": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (8, 1, 64, 64)),
    "convolution of 28 pixels": (convolutions(28), (8, 3, 28, 28)),
    "convolution of 224 pixels": (convolutions(224), (8, 3, 224, 224)),
    "signal": (nn.Sequential(nn.Conv1d(2, 4, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten()), (8, 2, 128)),
    "volume": (nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()), (8, 1, 16, 32, 32)),
    "generator": (nn.Sequential(nn.ConvTranspose2d(6, 3, 4), nn.Tanh()), (8, 6, 1, 1)),
    "recurrent": (Recurrent(True), (16, 20, 7)),
    "recurrent, time first": (Recurrent(False), (20, 16, 7)),
    "tokens": (nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 40)), (4, 32)),
    "tokens with few places": (Positions(), (4, 8)),
    "transformer": (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1), (8, 16, 8)),
    "bare parameters": (Bare(), (32, 6)),
}


@pytest.mark.parametrize(("model", "shape"), MODELS.values(), ids=MODELS.keys())
def test_two_fixed_batches_that_the_model_runs_on(model: nn.Module, shape: tuple[int, ...]) -> None:
    w = from_objects(model)
    (x,), _ = split(w.batches[0], model)
    (x2,), _ = split(w.batches[1], model)
    assert x.shape == shape and len(w.batches) == 2 and not torch.equal(x, x2)
    assert not w.data_given and not w.loss_given
    w.training_step(model, w.batches[1]).backward()
    assert torch.equal(split(from_objects(model).batches[0], model)[0][0], x)


class Counted(nn.Module):
    """Its passes are counted for all copies together."""

    passes = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 2)
        self.offset = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counted.passes += 1
        return self.layer(x) + self.offset


class Overwrites(Counted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.offset += 1
        return super().forward(x)


def test_one_pass_finds_inputs_and_loss() -> None:
    before = Counted.passes
    w = from_objects(Counted())
    assert Counted.passes == before + 1 and "cross entropy" in str(w.assumptions)


def test_what_autograd_refuses_is_told_of_the_step_not_of_the_inputs() -> None:
    with pytest.raises(TargetError, match=r"could not run.*leaf Variable"):
        from_objects(Overwrites())


def test_two_inputs_come_by_name() -> None:
    w = from_objects(Pair())
    inputs, target = split(w.batches[0], w.model)
    assert {k: tuple(v.shape) for k, v in inputs.items()} == {"user": (32, 5), "item": (32, 3)}  # type: ignore[union-attr]
    assert target.shape == (32,)


def small(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 60, **more}


TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", small(num_labels=3), "own"),
    "bert regression": ("BertForSequenceClassification", "BertConfig", small(num_labels=1), "own"),
    "bert tokens": ("BertForTokenClassification", "BertConfig", small(num_labels=3), "own"),
    "bert answers": ("BertForQuestionAnswering", "BertConfig", small(), "own"),
    "bert masked": ("BertForMaskedLM", "BertConfig", small(), "own"),
    "bert pretraining": ("BertForPreTraining", "BertConfig", small(), "own"),
    "bert base": ("BertModel", "BertConfig", small(), "inferred"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 20}, "own"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", small(num_key_value_heads=1), "own"),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 60},
        "own",
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", small(image_size=32, patch_size=16, num_labels=4), "own"),
    "wav2vec2": (
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        small(
            conv_dim=(8, 8),
            conv_stride=(5, 8),
            conv_kernel=(10, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embedding_groups=2,
            classifier_proj_size=8,
        ),
        "own",
    ),
}


@pytest.mark.parametrize(("model", "config", "settings", "loss"), TRANSFORMERS.values(), ids=TRANSFORMERS.keys())
def test_transformers_models_run_on_inputs_from_their_configuration(model: str, config: str, settings: dict[str, Any], loss: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**settings))
    w = from_objects(built)
    value = w.training_step(built, w.batches[1])
    value.backward()
    assert torch.isfinite(value) and any(p.grad is not None for p in built.parameters())
    said = next(a.text for a in w.assumptions if a.about == "loss")
    assert said.startswith("loss: the model's own") == (loss == "own"), said


def test_a_batch_encoding_with_its_own_labels_is_taken_as_it_is() -> None:
    transformers = pytest.importorskip("transformers")
    built = transformers.BertForSequenceClassification(transformers.BertConfig(**small(num_labels=3)))
    batch = transformers.BatchEncoding({"input_ids": torch.randint(60, (4, 8)), "labels": torch.randint(3, (4,)), "unused": torch.zeros(4)})
    w = from_objects(built, batch)
    assert w.data_given and torch.isfinite(w.training_step(built, w.batches[0]))
    assert next(a.text for a in w.assumptions if a.about == "loss") == "loss: the model's own"
