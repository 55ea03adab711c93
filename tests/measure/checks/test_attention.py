"""Attention weights, against softmaxes that are computed query by query."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks import attention
from gradcheck.measure.checks.attention import fused, is_stochastic, of_scores, of_weights
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.types.checks import Attention
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import fork
from tests.measure.workloads import workload

TOKENS, WIDTH, HEADS = 12, 32, 4


def slow_entropy(scores: torch.Tensor, masked: torch.Tensor) -> float:
    """scores, masked: [N, H, Q, K]. Lowest mean over heads, one query at a time; queries with fewer than 4 keys are left out."""
    heads = []
    for h in range(scores.shape[1]):
        values = []
        for n in range(scores.shape[0]):
            for row, hidden in zip(scores[n, h].tolist(), masked[n, h].tolist(), strict=True):
                open_ = [s for s, m in zip(row, hidden, strict=True) if not m]
                if len(open_) >= 4:
                    shares = [math.exp(s - max(open_)) for s in open_]
                    shares = [s / sum(shares) for s in shares]
                    values.append(-sum(p * math.log(p) for p in shares if p > 0) / math.log(len(open_)))
        heads.append(sum(values) / len(values))
    return min(heads)


def scores(std: float = 1.0, queries: int = 8, keys: int = 8) -> torch.Tensor:
    return std * torch.randn(1, 2, queries, keys, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("std", [0.1, 1.0, 5.0, 60.0])
@pytest.mark.parametrize("fill", [None, -math.inf, -1e9, -1e4, -100.0])
def test_entropy_is_that_of_every_query_over_the_keys_that_are_not_masked(std, fill):
    x, masked = scores(std), torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    if fill is not None:
        masked = torch.ones(8, 8, dtype=torch.bool).triu(1).expand(1, 2, 8, 8)
        x = x + torch.where(masked, fill, 0.0)
    if fill == -100.0 and std > 1:
        return  # a faint mask cannot be told from such logits
    found = of_scores(x, 1)
    assert found is not None
    assert found.entropy == pytest.approx(slow_entropy(x, masked), abs=1e-4)
    assert found.heads == 2 and found.keys == 8
    judged = ~masked & ((~masked).sum(-1, keepdim=True) >= 4)
    assert found.logit_max == pytest.approx(x[judged].abs().max().item(), rel=1e-5)


def test_a_pattern_that_all_samples_share_is_no_collapse():
    distance = -2.0 * (torch.arange(64)[:, None] - torch.arange(64)).abs().float()
    noise = torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    biased, own = of_scores(noise + distance, 4), of_scores(noise, 4)
    assert biased is not None and own is not None
    assert biased.entropy == pytest.approx(own.entropy, abs=0.03) and biased.logit_std == pytest.approx(own.logit_std, abs=0.1)
    single = of_scores((noise + distance)[:1], 1)
    assert single is not None and single.entropy < 0.3


def test_a_row_of_few_keys_says_nothing():
    assert of_scores(scores(keys=3), 1) is None
    assert of_scores(torch.full((1, 1, 4, 8), -math.inf), 1) is None


def test_folded_heads_are_unfolded():
    x = torch.randn(4, HEADS, 6, 6)
    folded, apart = of_scores(x.flatten(0, 1), 4), of_scores(x, 4)
    assert folded == apart


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 3.0}, {"mask": "bool"}, {"mask": "float"}])
def test_fused_attention_is_computed_again(options):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, HEADS, TOKENS, 8, generator=g), torch.randn(2, HEADS, TOKENS, 8, generator=g)
    masked = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    if options.get("is_causal") or options.get("mask"):
        masked = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    kind = options.pop("mask", None)
    if kind is not None:
        options["attn_mask"] = ~masked if kind == "bool" else torch.where(masked, -math.inf, 0.0)
    x = (q @ k.transpose(-1, -2)) * options.get("scale", 8**-0.5)
    found = fused(q, k, k, samples=1, **options)
    by_hand = of_scores(x.masked_fill(masked, -math.inf), 1)
    assert found is not None and by_hand is not None
    assert found.entropy == pytest.approx(by_hand.entropy, abs=1e-6) and found.logit_max == pytest.approx(by_hand.logit_max, rel=1e-5)


def test_grouped_queries_share_their_keys():
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    assert fused(q, k, k, enable_gqa=True, samples=2) == fused(q, k.repeat_interleave(2, 1), k, samples=2)


def test_weights_without_their_logits():
    x = scores(1.0)
    found = of_weights(x.softmax(-1), 1)
    assert found is not None and found.logit_max is None
    assert found.entropy == pytest.approx(slow_entropy(x, torch.zeros_like(x, dtype=torch.bool)), abs=1e-5)
    underflown = of_weights(scores(200.0).softmax(-1), 1)
    assert underflown is not None and underflown.entropy < 0.1  # its zeros are no masks
    gates = torch.zeros(2, 1, 6, 16).scatter(-1, torch.rand(2, 1, 6, 16).topk(5, -1).indices, 0.2)
    best_five = of_weights(gates, 2)
    assert best_five is not None and best_five.entropy == pytest.approx(1.0)


def test_rows_that_sum_to_one():
    x = scores().softmax(-1)
    assert is_stochastic(x, -1) and not is_stochastic(x, -2) and not is_stochastic(x - 0.1, -1) and not is_stochastic(2 * x, -1)


# ---------------------------------------------------------------------- spellings


class Attending(nn.Module):
    """x [N, T, D] -> logits [N, 5], its attention written in one of several ways."""

    def __init__(self, way: str, std: float) -> None:
        super().__init__()
        self.way = way
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dropout=0.3) if way == "module" else None
        torch.manual_seed(0)
        weight = self.qkv.weight if self.attention is None else self.attention.in_proj_weight
        nn.init.normal_(weight, 0, std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.attention is not None:
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.head(self.mix(q, k, v).transpose(1, 2).flatten(2).mean(1))

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.way == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.way == "einsum":
            weights = torch.einsum("nhqd,nhkd->nhqk", q, k).div(8**0.5).softmax(-1)
            return torch.einsum("nhqk,nhkd->nhqd", F.dropout(weights, 0.3), v)
        logits = q @ k.transpose(-1, -2) / 8**0.5
        if self.way == "by hand":
            shares = (logits - logits.amax(-1, keepdim=True)).exp()
            return (shares / shares.sum(-1, keepdim=True)) @ v
        weights = F.dropout(torch.softmax(logits, dim=-1), 0.3)
        if self.way == "folded":
            return torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).unflatten(0, (-1, HEADS))
        if self.way == "transposed":
            return (v.transpose(-1, -2) @ weights.transpose(-1, -2)).transpose(-1, -2)
        return weights @ v


def looked_at(model: nn.Module, batches: Any = None) -> tuple[Attention, ...]:
    g = torch.Generator().manual_seed(1)
    batch = (torch.randn(8, TOKENS, WIDTH, generator=g), torch.randint(5, (8,), generator=g))
    w = workload(model, batches=batches or [batch])
    return attention.measure(CheckContext(w, 0, math.inf, {}, fork(w), Run("probe", ()), None))


WAYS = ("fused", "module", "matmul", "einsum", "by hand", "folded", "transposed")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_it_is_seen(way):
    healthy, faulty = looked_at(Attending(way, 0.1)), looked_at(Attending(way, 2.0))
    assert len(healthy) == len(faulty) == 1
    assert healthy[0].entropy > 0.95 and healthy[0].heads == HEADS and healthy[0].keys == TOKENS
    assert faulty[0].entropy < 0.05 and faulty[0].logit_std is not None and faulty[0].logit_std > 20


def test_ways_agree():
    found = {way: looked_at(Attending(way, 0.3))[0].entropy for way in WAYS if way != "module"}
    assert max(found.values()) - min(found.values()) < 1e-4


class Choosing(nn.Module):
    """Softmaxes that are no attention: over classes, over a table of vectors, over a few branches."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.table = nn.Linear(WIDTH, 16), nn.Parameter(torch.randn(16, WIDTH))
        self.gate, self.head = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (100 * self.codes(x)).softmax(-1) @ self.table
        gates = (100 * self.gate(x)).softmax(-1)
        branches = torch.stack([x, 2 * x, -x], -2).flatten(0, 1)
        return self.head(torch.bmm(gates.flatten(0, 1)[:, None], branches)[:, 0].unflatten(0, (-1, TOKENS)).mean(1)).log_softmax(-1)


def test_other_softmaxes_are_not_attention():
    assert looked_at(Choosing()) == ()


def test_a_model_that_does_not_run_is_not_measured():
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    with pytest.raises(Unmeasured, match="the forward pass raised an error"):
        looked_at(nn.Sequential(nn.Linear(WIDTH, 5), Broken()))
