"""Programs that read padded sequences: those whose output depends on the padding, and healthy ones alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import gradcheck
from gradcheck.types.report import Report

Tensor = torch.Tensor
VOCABULARY, WIDTH, SAMPLES, CLASSES = 20, 16, 24, 2


class Reader(nn.Module):
    """`read(x, mask, lengths)` makes one vector of each sequence, or of each place, of the embedded tokens [N, T, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0), nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.read(self.embed(tokens), tokens != 0, lengths))

    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        raise NotImplementedError


class Last(Reader):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


class LastReal(Last):
    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(x)[0][torch.arange(len(x)), lengths - 1]


class Packed(Last):
    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][0][-1]


class Mean(Reader):
    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return x.mean(1)


class MaskedMean(Reader):
    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return (x * mask[..., None]).sum(1) / lengths[:, None]


class Pooled(Reader):
    """Attention over the places, each by a score of its own."""

    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return (x[..., :1].softmax(1) * x).sum(1)


class MaskedPooled(Reader):
    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return (x[..., :1].masked_fill(~mask[..., None], -torch.inf).softmax(1) * x).sum(1)


class Inverted(Reader):
    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return (x[..., :1].masked_fill(mask[..., None], -torch.inf).softmax(1) * x.square()).sum(1)


class Encoder(Reader):
    masked = False

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=~mask if self.masked else None)[:, 0]


class MaskedEncoder(Encoder):
    masked = True


class Convolution(Reader):
    """Under a maximum over time, which hardly sees the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return self.convolution(x.transpose(1, 2)).relu().amax(-1)


class Tagger(Reader):
    """Of places, not of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)

    def read(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class Segments(Reader):
    """The second argument tells which of two sentences a place is in: no padding."""

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        return self.head((self.embed(tokens) * (1 + segments[..., None])).mean(1))


def sequences(width: int | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Tokens, lengths and labels; `width`: what all batches are padded to."""
    generator, found = torch.Generator().manual_seed(0), []
    for longest in (16, 13):
        lengths = [longest, *torch.randint(3, longest, (SAMPLES - 1,), generator=generator).tolist()]
        rows = [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in lengths]
        rows = [F.pad(r, (0, width - len(r))) for r in rows] if width else rows
        labels = torch.tensor([int((r < VOCABULARY // 2).sum() > n / 2) for r, n in zip(rows, lengths, strict=True)])
        found.append((pad_sequence(rows, batch_first=True), torch.tensor(lengths), labels))
    return found


def segments() -> list[tuple[Tensor, Tensor, Tensor]]:
    tokens = [torch.randint(1, VOCABULARY, (SAMPLES, 12), generator=torch.Generator().manual_seed(k)) for k in range(2)]
    return [(x, (torch.arange(12) >= 3 + torch.arange(SAMPLES)[:, None] % 8).long(), x[:, 0] % CLASSES) for x in tokens]


def loss(model: nn.Module, batch: Any) -> Tensor:
    tokens, lengths, labels = batch
    logits = model(tokens, lengths)
    if logits.dim() == 3:
        return F.cross_entropy(logits.flatten(0, 1), (tokens % CLASSES).masked_fill(tokens == 0, -100).flatten())
    return F.cross_entropy(logits, labels)


def scan(model: type[nn.Module], batches: list[Any]) -> Report:
    torch.manual_seed(0)
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    return gradcheck.scan(net, batches, training_step=loss, optimizer=optimizer, steps=8, config={"select": ["SEQ004"]})


@pytest.mark.parametrize("model", [LastReal, Packed, MaskedMean, MaskedPooled, MaskedEncoder, Convolution, Tagger])
def test_what_leaves_padding_out_is_left_in_peace(model):
    report = scan(model, sequences())
    assert [s.status for s in report.rules] == ["passed"] and report.measurement.padding.told == "lengths"


@pytest.mark.parametrize(
    ("model", "operation"), [(Last, "__getitem__"), (Mean, "mean"), (Pooled, "mul"), (Encoder, "multi_head_attention_forward")]
)
def test_what_counts_padding_is_named(model, operation):
    found = scan(model, sequences()).findings
    assert [(f.code, f.severity) for f in found] == [("SEQ004", "warning")] and f"first to use it is {operation}" in found[0].message
    assert found[0].location.path.endswith("test_programs_padding.py")


class Score(Last):
    """One number for each sequence."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(tokens, lengths)[:, 0]


def test_an_output_of_one_axis():
    def score_loss(model: nn.Module, batch: Any) -> Tensor:
        tokens, lengths, target = batch
        return F.binary_cross_entropy_with_logits(model(tokens, lengths), target.float())

    torch.manual_seed(0)
    report = gradcheck.scan(Score(), sequences(), training_step=score_loss, steps=8, config={"select": ["SEQ"]})
    assert [f.code for f in report.findings] == ["SEQ004"]


def test_a_mask_that_is_inverted():
    found = scan(Inverted, sequences(20)).findings
    assert [(f.code, f.severity) for f in found] == [("SEQ004", "error")] and "inverted" in found[0].message


class Labelled(MaskedMean):
    """It is handed the labels before the tokens, as a batch of named tensors may be."""

    def forward(self, labels: Tensor, tokens: Tensor, lengths: Tensor) -> Any:
        logits = super().forward(tokens, lengths)
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}


def test_labels_that_come_first():
    torch.manual_seed(0)
    net = Labelled()
    batches = [{"labels": y, "tokens": x, "lengths": n} for x, n, y in sequences()]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    how = {"training_step": lambda model, batch: model(**batch)["loss"], "optimizer": optimizer, "steps": 8}
    report = gradcheck.scan(net, batches, config={"select": ["SEQ004"]}, **how)
    assert [s.status for s in report.rules] == ["passed"] and report.measurement.padding.told == "lengths"


def test_segments_are_no_mask():
    report = scan(Segments, segments())
    assert [s.status for s in report.rules] == ["not-applicable"]


class Writer(nn.Module):
    """A causal attention layer over sequences whose padding comes first."""

    masked, padding_idx, told = False, None, False

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(VOCABULARY, WIDTH, padding_idx=self.padding_idx), nn.Embedding(16, WIDTH)
        self.mix, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places(torch.arange(tokens.shape[1]))
        keys = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        if self.masked:
            keys = keys & (tokens != 0)[:, None] | torch.eye(tokens.shape[1], dtype=torch.bool)
        return self.head(x + F.scaled_dot_product_attention(*self.mix(x).chunk(3, -1), keys))


class Index(Writer):
    padding_idx = 0


class Told(Writer):
    told = True


class MaskedWriter(Writer):
    masked = True


class Recurrent(Writer):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


def next_token(model: nn.Module, batch: Any) -> Tensor:
    tokens, lengths, labels = batch
    return F.cross_entropy(model(tokens, lengths if model.told else tokens).flatten(0, 1), labels.flatten())


def turned() -> list[tuple[Tensor, Tensor, Tensor]]:
    """With the padding first, and as labels the token itself less one."""
    turned = [(x.flip(1), n) for x, n, _ in sequences()]
    return [(x, n, (x - 1).masked_fill(x == 0, -100)) for x, n in turned]


@pytest.mark.parametrize(
    ("model", "told", "leaks"),
    [
        (Writer, "targets", True),
        (Told, "lengths", True),
        (Index, "index", True),
        (MaskedWriter, "targets", False),
        (Recurrent, "targets", False),
    ],
)
def test_padding_that_comes_first(model, told, leaks):
    torch.manual_seed(0)
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    report = gradcheck.scan(net, turned(), training_step=next_token, optimizer=optimizer, steps=8, config={"select": ["SEQ004"]})
    assert report.measurement.padding.told == told and report.measurement.padding.before
    assert [f.severity for f in report.findings] == ["warning"] * leaks
    if leaks:
        assert "first to use it is scaled_dot_product_attention" in report.findings[0].message
