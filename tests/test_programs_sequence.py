"""Programs that predict tokens: which of them see the answer, and which targets are misplaced or missing; and healthy ones alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.types.report import Report

Tensor = torch.Tensor
VOCABULARY, LENGTH, WIDTH, SAMPLES, HEADS = 17, 14, 16, 16, 2
IGNORED = -100


class Attention(nn.Module):
    """`weigh(scores)` gives the weights of [.., queries, keys]; `merge(y)` puts the heads together."""

    def __init__(self, weigh: Callable[[Tensor], Tensor], merge: Callable[[Tensor], Tensor] = lambda y: y.transpose(1, 2)) -> None:
        super().__init__()
        self.weigh, self.merge = weigh, merge
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(self.merge(self.weigh(q @ k.transpose(-2, -1)) @ v).reshape(x.shape))


def causal(scores: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def too_wide(scores: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(2), -torch.inf).softmax(-1)


def prefixed(scores: Tensor) -> Tensor:
    mask = torch.ones_like(scores, dtype=torch.bool).triu(1)
    mask[..., : LENGTH // 2, : LENGTH // 2] = False
    return scores.masked_fill(mask, -torch.inf).softmax(-1)


def everything(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


class Fused(nn.Module):
    """torch's own attention, or a layer of it."""

    def __init__(self, layer: nn.Module, masked: bool) -> None:
        super().__init__()
        self.layer, self.masked = layer, masked

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.masked else None
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.layer(x.transpose(0, 1), src_mask=mask).transpose(0, 1)


class Convolution(nn.Module):
    def __init__(self, left: int, right: int, dilation: int = 1) -> None:
        super().__init__()
        self.padding, self.convolution = (left, right), nn.Conv1d(WIDTH, WIDTH, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x.transpose(1, 2), self.padding)).relu().transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool = False) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, WIDTH // (1 + bidirectional), batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Scan(nn.Module):
    """A state space: h = a * h + u."""

    def __init__(self, backwards: bool = False) -> None:
        super().__init__()
        self.backwards = backwards
        self.decay, self.into = nn.Parameter(torch.linspace(-2, 2, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state, found = torch.zeros_like(x[:, 0]), []
        way = -1 if self.backwards else 1
        for u in self.into(x).unbind(1)[::way]:
            state = self.decay.sigmoid() * state + u
            found.append(state)
        return torch.stack(found[::way], 1)


class Long(nn.Module):
    """A convolution over the whole past, by Fourier transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.1 * torch.randn(WIDTH, LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft(x.transpose(1, 2), 2 * LENGTH) * torch.fft.rfft(self.kernel, 2 * LENGTH)
        return torch.fft.irfft(x, 2 * LENGTH)[..., :LENGTH].transpose(1, 2)


class Mean(nn.Module):
    def __init__(self, running: bool) -> None:
        super().__init__()
        self.running = running

    def forward(self, x: Tensor) -> Tensor:
        if self.running:
            return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return x.mean(1, keepdim=True).expand_as(x)


class Block(nn.Module):
    def __init__(self, mixer: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.mixer = norm or nn.LayerNorm(WIDTH), mixer
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(x)


class LanguageModel(nn.Module):
    def __init__(self, *mixers: nn.Module, norm: nn.Module | None = None, shifts: bool = False) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block(m, norm) for m in mixers))
        self.head, self.shifts = nn.Linear(WIDTH, VOCABULARY), shifts

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        x = F.pad(x, (0, 0, 1, 0))[:, :-1] if self.shifts else x
        return self.head(self.blocks(x + self.position(torch.arange(tokens.shape[1]))))


class Translator(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.embed, self.masked = nn.Embedding(VOCABULARY, WIDTH), masked
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1]) if self.masked else None
        return self.head(self.transformer(self.embed(source), self.embed(target), tgt_mask=mask))


class Bottleneck(nn.Module):
    """An auto-encoder; `forced`: its decoder is fed the tokens before."""

    def __init__(self, forced: bool) -> None:
        super().__init__()
        self.embed, self.forced, self.head = nn.Embedding(VOCABULARY, WIDTH), forced, nn.Linear(WIDTH, VOCABULARY)
        self.encoder, self.decoder = (nn.GRU(WIDTH, WIDTH, batch_first=True) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        state = self.encoder(self.embed(tokens))[1]
        fed = self.embed(tokens) if self.forced else state[0][:, None].expand(-1, tokens.shape[1], -1)
        return self.head(self.decoder(fed.contiguous(), state if self.forced else None)[0])


class Latent(nn.Module):
    """An auto-encoder with one embedding for what it encodes, in both directions, and what its decoder is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.encoder, self.decoder = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True), nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.decoder(x, self.encoder(x)[1][:1])[0])


class TimeFirst(nn.Module):
    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.rnn = nn.LSTM(WIDTH, WIDTH // (1 + bidirectional), bidirectional=bidirectional)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


def text(length: int = LENGTH + 1) -> list[Tensor]:
    tokens = torch.randint(1, VOCABULARY, (2 * SAMPLES, length), generator=torch.Generator().manual_seed(0))
    return list(tokens.split(SAMPLES))


def next_tokens(ahead: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [(x[:, :LENGTH], x[:, ahead : ahead + LENGTH]) for x in text(LENGTH + ahead)]


def after_a_prefix() -> list[tuple[Tensor, Tensor]]:
    return [(x, y.masked_fill(torch.arange(LENGTH) < LENGTH // 2 - 1, IGNORED)) for x, y in next_tokens()]


def hidden_tokens(all_asked: bool) -> list[tuple[Tensor, Tensor]]:
    found = []
    for x, _ in next_tokens():
        hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3
        found.append((x.masked_fill(hidden, 0), x if all_asked else x.masked_fill(~hidden, IGNORED)))
    return found


def written_by_hand() -> list[tuple[Tensor, Tensor, None]]:
    """Next tokens, for a loss without cross entropy."""
    return [(x, y, None) for x, y in next_tokens()]


def time_first() -> list[tuple[Tensor, Tensor]]:
    return [(x.T.contiguous(), y.T.contiguous()) for x, y in next_tokens()]


class StepByStep(nn.Module):
    """A decoder that reads one token at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        h, seen = torch.zeros(len(tokens), WIDTH), []
        for t in range(tokens.shape[1]):
            h = self.cell(self.embedding(tokens[:, t]), h)
            seen.append(self.head(h))
        return torch.stack(seen, 1)


class Conditional(nn.Module):
    """Made from a label for each sample, which a second net is to tell from it, as in a conditional GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.net = nn.Embedding(VOCABULARY, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, labels: Tensor) -> Tensor:
        return self.head(self.net(self.embedding(labels) * torch.ones(len(labels), WIDTH)))


def same_language() -> list[tuple[Tensor, Tensor, Tensor]]:
    """The Annotated Transformer's task: to repeat the source, which begins as the decoder's input does."""
    return [(x, x[:, :-1], x[:, 1:]) for x in text()]


def masked(share: float) -> list[tuple[Tensor, Tensor]]:
    """Next tokens of which some sequences, and those of the last batch all, count for nothing."""
    return [(x, y.masked_fill((torch.arange(SAMPLES) < share * SAMPLES)[:, None], IGNORED)) for x, y in next_tokens()]


class LeftPadded(nn.Module):
    """Padding, which is token 0, is masked as a key: it sees nothing itself, and a softmax of nothing looks at all places alike."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal, self.embed, self.out = causal, nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        hidden = (tokens == 0)[:, None].expand(-1, tokens.shape[1], -1)
        if self.causal:
            hidden = hidden | torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        return self.out(x + (x @ x.transpose(1, 2)).masked_fill(hidden, -1e9).softmax(-1) @ x)


def left_padded() -> list[tuple[Tensor, Tensor]]:
    """The first token counts, which padding predicts."""
    batches = []
    for x in text():
        x = x.clamp(min=1).masked_fill(torch.arange(x.shape[1]) < torch.arange(len(x))[:, None] % 6, 0)
        batches.append((x[:, :-1], x[:, 1:].masked_fill(x[:, 1:] == 0, IGNORED)))
    return batches


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), target.reshape(-1))


def by_hand(model: nn.Module, batch: Any) -> Tensor:
    tokens, target, _ = batch
    return -model(tokens).log_softmax(-1).gather(-1, target[..., None]).mean()


def translated(model: nn.Module, batch: Any) -> Tensor:
    source, given, target = batch
    return loss_of(model(source, given), target)


def scan(model: Callable[[], nn.Module], data: Callable[[], list[Any]]) -> Report:
    torch.manual_seed(0)
    batches = data()
    own = by_hand if data is written_by_hand else translated
    how: dict[str, Any] = {"loss": loss_of} if len(batches[0]) == 2 else {"training_step": own}
    return gradcheck.scan(model(), batches, steps=8, config={"select": ["SEQ"]}, **how)


def lm(*mixers: Callable[[], nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: LanguageModel(*(m() for m in mixers), **options)


Program = tuple[Callable[[], nn.Module], Callable[[], list[Any]]]
HEALTHY: dict[str, Program] = {
    "attention with a mask": (lm(lambda: Attention(causal)), next_tokens),
    "fused attention": (lm(lambda: Fused(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), True)), next_tokens),
    "a layer of torch's": (lm(lambda: Fused(nn.TransformerEncoderLayer(WIDTH, HEADS, 32), True)), next_tokens),
    "convolutions": (lm(lambda: Convolution(2, 0), lambda: Convolution(8, 0, 4)), next_tokens),
    "recurrent": (lm(lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU)), next_tokens),
    "time first": (lambda: TimeFirst(False), time_first),
    "a label for each sample": (Conditional, lambda: [(torch.randint(VOCABULARY, (64,)),) * 2]),
    "one token at a time": (StepByStep, next_tokens),
    "state space": (lm(Scan), next_tokens),
    "long convolution": (lm(Long), next_tokens),
    "running mean": (lm(lambda: Mean(True)), next_tokens),
    "a loss by hand": (lm(lambda: Attention(causal)), written_by_hand),
    "prefix": (lm(lambda: Attention(prefixed)), after_a_prefix),
    "masked tokens": (lm(lambda: Attention(everything)), lambda: hidden_tokens(False)),
    "denoising": (lm(lambda: Attention(everything)), lambda: hidden_tokens(True)),
    "repeats its source": (lambda: Translator(True), same_language),
    "auto-encoder": (lambda: Bottleneck(False), lambda: [(x[:, :LENGTH],) * 2 for x in text()]),
    "auto-encoder that is fed": (lambda: Bottleneck(True), next_tokens),
    "shifts its input": (lm(lambda: Attention(causal), shifts=True), lambda: [(x[:, :LENGTH],) * 2 for x in text()]),
    "padded before the sequence": (lambda: LeftPadded(True), left_padded),
    "some sequences masked": (lm(lambda: Attention(causal)), lambda: masked(0.25)),
}
FAULTY: dict[str, tuple[str, str, Program]] = {
    "no mask": ("SEQ001", "matmul", (lm(lambda: Attention(everything)), next_tokens)),
    "padded before the sequence": ("SEQ001", "matmul", (lambda: LeftPadded(False), left_padded)),
    "a loss by hand": ("SEQ001", "matmul", (lm(lambda: Attention(everything)), written_by_hand)),
    "a mask that is too wide": ("SEQ001", "matmul", (lm(lambda: Attention(too_wide)), next_tokens)),
    "heads merged as they are": ("SEQ001", "reshape", (lm(lambda: Attention(causal, lambda y: y)), next_tokens)),
    "fused attention": (
        "SEQ001",
        "multi_head_attention_forward",
        (lm(lambda: Fused(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), False)), next_tokens),
    ),
    "convolution": ("SEQ001", "conv1d", (lm(lambda: Convolution(1, 1)), next_tokens)),
    "both directions": ("SEQ001", "lstm", (lm(lambda: Recurrent(nn.LSTM, True)), next_tokens)),
    "both directions, time first": ("SEQ001", "lstm", (lambda: TimeFirst(True), time_first)),
    "mean": ("SEQ001", "mean", (lm(lambda: Mean(False)), next_tokens)),
    "norm over places": ("SEQ001", "layer_norm", (lm(lambda: Attention(causal), norm=nn.LayerNorm([LENGTH, WIDTH])), next_tokens)),
    "decoder that repeats": ("SEQ001", "multi_head_attention_forward", (lambda: Translator(False), same_language)),
    "not shifted": ("SEQ002", "", (lm(lambda: Attention(causal)), lambda: [(x[:, :LENGTH],) * 2 for x in text()])),
    "not shifted, one token at a time": ("SEQ002", "", (StepByStep, lambda: [(x[:, :LENGTH],) * 2 for x in text()])),
    "shifted twice": ("SEQ002", "", (lm(lambda: Attention(causal)), lambda: next_tokens(2))),
    "all masked": ("SEQ003", "", (lm(lambda: Attention(causal)), lambda: masked(1.0))),
    "one batch masked": ("SEQ003", "", (lm(lambda: Attention(causal)), lambda: [*masked(0.25)[:1], *masked(1.0)[:1]])),
    "half the sequences masked": ("SEQ003", "", (lm(lambda: Attention(causal)), lambda: masked(0.5))),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_sequences_are_left_in_peace(name):
    assert scan(*HEALTHY[name]).findings == ()


class Detector(nn.Module):
    """A loss in training mode, and no tensor in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor | None:
        return F.cross_entropy(self.head(x), y) if self.training else None


def test_a_step_without_a_loss_in_evaluation_mode_is_no_failure():
    batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    report = gradcheck.scan(Detector(), batches, training_step=lambda m, b: m(*b), steps=8, config={"select": ["SEQ", "MOE"]})
    assert not [n for n in report.measurement.not_measured if n.lack == "failed"] and report.findings == ()


def test_a_summary_of_the_sequence_may_be_meant():
    """It is told from a layer whose places see each other, although it has such outputs as well."""
    assert [(f.code, f.severity) for f in scan(Latent, next_tokens).findings] == [("SEQ001", "warning")]
    backwards = scan(lm(lambda: Scan(backwards=True)), next_tokens)  # no summary: it tells later places nothing of earlier ones
    assert [(f.code, f.severity) for f in backwards.findings] == [("SEQ001", "error")]


@pytest.mark.parametrize("name", FAULTY)
def test_what_is_wrong_is_named(name):
    code, operation, program = FAULTY[name]
    report = scan(*program)
    assert [f.code for f in report.findings] == [code]
    found = report.findings[0]
    assert found.location is not None and found.location.path.endswith("test_programs_sequence.py")
    assert not operation or f"({operation})" in found.message
