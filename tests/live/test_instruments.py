"""What a watched step says beside its layers: gauges and routers, against slow and obvious computations, and on planted failures."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.live.instruments import Gauges
from gradcheck.report.html import render
from gradcheck.types.gauges import Gauge, Quantity
from tests.live.loops import mlp, remains


def gauges(board: gradcheck.Board, quantity: Quantity) -> dict[str, Gauge]:
    assert board.failure is None, repr(board.failure)
    return {g.name: g for g in board.report().measurement.gauges if g.quantity == quantity}


class Attention(nn.Module):
    """`how`: the fused function, a softmax written by hand, or torch's module."""

    def __init__(self, how: str, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.how, self.heads = how, heads
        self.whole = nn.MultiheadAttention(width, heads, batch_first=True)

    def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        qkv = F.linear(x, self.whole.in_proj_weight, self.whole.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv)
        return q, k, v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.how == "module":
            return self.whole(x, x, x, attn_mask=~mask, need_weights=False)[0]
        q, k, v = self.projected(x)
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(-1) @ v
        return self.whole.out_proj(mixed.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    def __init__(self, width: int = 8, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weight, index = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows = (index == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(flat[rows]) * weight[rows, None])
        return x + out.view_as(x)


class Net(nn.Module):
    def __init__(self, how: str = "fused") -> None:
        super().__init__()
        self.attention, self.moe, self.head = Attention(how), Experts(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.moe(x + self.attention(x)))


def train(model: nn.Module, steps: int, every: int = 1, watch: bool = True, change: Any = None) -> tuple[gradcheck.Board, Any]:
    """Adam on random sequences. `change(step, model)` is called before each step."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    board = gradcheck.watch(model, optimizer, every=every)
    with board if watch else nullcontext():
        for step in range(steps):
            x = torch.randn(16, 6, 8, generator=generator)
            if change is not None:
                change(step, model)
            optimizer.zero_grad()
            F.cross_entropy(model(x).flatten(0, 1), (x.sum(-1) > 0).long().flatten()).backward()
            optimizer.step()
    return board, optimizer


@pytest.mark.parametrize("how", ["fused", "by hand", "module"])
def test_the_largest_logit_and_the_entropy_of_each_head(how):
    torch.manual_seed(0)
    model, kept = Net(how), []
    board, _ = train(model, 1, change=lambda step, m: kept.append([p.detach().clone() for p in m.parameters()]))
    with torch.no_grad():
        for p, before in zip(model.parameters(), kept[0], strict=True):
            p.copy_(before)
        x = torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(1))[[0, 4, 8, 12] if how == "by hand" else slice(0, 4)]
        q, k, _ = model.attention.projected(x)
        logits = (q @ k.mT / 2).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -math.inf)
        rows = torch.special.entr(logits.softmax(-1)).sum(-1) / torch.arange(1, 7).log()
    found, entropy = gauges(board, "attention-logit"), gauges(board, "attention-entropy")
    assert [g.values[0] for g in found.values()] == pytest.approx(logits.amax((0, 2, 3)).tolist(), rel=1e-5)
    assert [g.values[0] for g in entropy.values()] == pytest.approx(rows[..., 3:].mean((0, 2)).tolist(), rel=1e-5)
    assert {n.rpartition(", ")[2] for n in found} == {"head 0", "head 1"}


def test_watching_attention_and_experts_changes_nothing():
    left = []
    for watch in (True, False):
        torch.manual_seed(0)
        model = Net("module")
        left.append(remains(model, train(model, 12, every=3, watch=watch)[1]))
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))


def starve(step: int, model: nn.Module) -> None:
    if step >= 20:
        with torch.no_grad():
            model.moe.router.bias[2] = -100.0


def test_an_expert_that_dies_is_named():
    torch.manual_seed(0)
    board, _ = train(Net(), 40, every=2, change=starve)
    loads = gauges(board, "expert-load")
    assert len(loads) == 4 and loads["moe, expert 2"].values[-1] == 0 and loads["moe, expert 2"].peak > 0.1
    (router,) = board.report().measurement.routers or ()
    assert (router.layer, router.experts, router.chosen, router.idle) == ("moe", 4, 1, 1)
    found = {f.code: f for f in board.findings}
    assert "expert 2" in found["WATCH005"].message and "MOE001" not in found


def crowd(step: int, model: nn.Module) -> None:
    with torch.no_grad():
        model.moe.router.bias[1] = 100.0


def test_a_router_that_collapses_is_an_error_of_a_watched_run():
    torch.manual_seed(0)
    board, _ = train(Net(), 60, every=10, change=crowd)
    assert {(f.code, f.severity) for f in board.findings if f.code == "MOE001"} == {("MOE001", "error")}


def sharpen(step: int, model: nn.Module) -> None:
    with torch.no_grad():
        model.attention.whole.in_proj_weight[:16].mul_(1.07)


def test_logits_that_grow_are_named():
    torch.manual_seed(0)
    board, _ = train(Net(), 60, every=3, change=sharpen)
    assert any(f.code == "WATCH003" and f.layers == ("attention",) for f in board.findings)


class Drill:
    """Adam on an MLP whose data become `factor` times as large at some step."""

    def __init__(self, factor: float, every: int, steps: int = 60, at: int = 45) -> None:
        torch.manual_seed(0)
        self.model = mlp()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.squares: list[list[float]] = []
        with gradcheck.watch(self.model, optimizer, every=every) as self.board:
            for step in range(steps):
                x = torch.randn(64, 20)
                y = (x[:, 0] > 0).long()
                optimizer.zero_grad()
                F.cross_entropy(self.model(x) * (factor if step == at else 1.0), y).backward()
                optimizer.step()
                self.squares.append([float(p.grad.square().sum()) for p in self.model.parameters()])  # type: ignore[union-attr]


def test_a_second_moment_that_lags_is_found_in_its_step():
    drill = Drill(100.0, every=3, steps=112, at=105)
    worst = max(gauges(drill.board, "second-moment-lag").values(), key=lambda g: g.peak)
    assert worst.peak_step == 105 and worst.peak > 8 and worst.departure is not None and worst.departure.step == 105
    assert "WATCH001" in {f.code for f in drill.board.findings}
    healthy = Drill(1.0, every=3, steps=112)
    assert max(g.peak for g in gauges(healthy.board, "second-moment-lag").values()) < 6
    assert not {f.code for f in healthy.board.findings if f.code.startswith("WATCH")}


@pytest.mark.parametrize("every", [1, 5])
def test_rows_that_are_first_used_late_do_not_lag(every: int) -> None:
    """Positions of a sequence that becomes longer: Adam has no average of their gradients yet."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(32, 8), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gradcheck.watch(model, optimizer, every=every) as board:
        for step in range(260):
            x = torch.arange(16 if step < 200 else 32).repeat(4)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.randint(4, x.shape)).backward()
            optimizer.step()
    assert not [f for f in board.findings if f.code == "WATCH001"]
    assert max(g.peak for g in gauges(board, "second-moment-lag").values()) < 8


def test_a_lag_between_two_measured_steps_is_found_where_the_loss_jumps():
    drill = Drill(100.0, every=10, steps=112, at=103)
    assert drill.board.record.measured[-2:] == [104, 110]  # the next step, ahead of its time
    worst = max(gauges(drill.board, "second-moment-lag").values(), key=lambda g: g.peak)
    assert worst.peak_step == 103 and worst.peak > 8
    assert any("at step 103" in f.message for f in drill.board.findings if f.code == "WATCH001")


def test_a_spike_between_two_measured_steps_is_in_the_second_moment():
    drill = Drill(40.0, every=5, at=42)
    found = gauges(drill.board, "gradient")
    assert found, "the step of the spike was not measured"
    for name, gauge in found.items():
        index = [n for n, _ in drill.model.named_parameters()].index(name)
        since = drill.squares[41:46] if gauge.steps[-1] >= 45 else []
        value = gauge.values[gauge.steps.index(45)]
        weights = [0.999**k for k in range(4, -1, -1)]
        exact = math.fsum(w * s[index] for w, s in zip(weights, since, strict=True)) / math.fsum(weights)
        assert gauge.departure is not None and gauge.departure.step == 45
        sampled = dict(drill.model.named_parameters())[name].numel() > 1024
        assert value == pytest.approx(exact**0.5, rel=0.3 if sampled else 1e-3)


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.inner, self.head = nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 32), nn.Linear(32, 5)
        with torch.no_grad():
            self.inner.bias[:24] = -100.0  # never active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given = self.norm(3 * x)
        self.features = self.act(self.inner(self.given))
        return self.head(self.features)


def test_streams_dormant_units_and_the_rank_of_features_are_series():
    torch.manual_seed(0)
    model = Stacked()
    board, _ = train(model, 5)
    (stream,), (dormant,) = gauges(board, "stream").values(), gauges(board, "dormant-share").values()
    assert stream.name == "norm" and stream.values[-1] == pytest.approx(3.0, rel=0.1) and len(stream.values) == 5
    assert (dormant.name, dormant.values[-1]) == ("act", 0.75)
    rows = model.features.detach().flatten(0, 1).double()
    variances = torch.linalg.svdvals(rows - rows.mean(0)).square()
    (rank,) = gauges(board, "effective-rank").values()
    assert rank.name == "head" and rank.values[-1] == pytest.approx(float(variances.sum() ** 2 / variances.square().sum()), rel=1e-3)


def test_the_page_draws_the_gauges_with_their_limits():
    torch.manual_seed(0)
    board, _ = train(Net(), 60, every=3, change=sharpen)
    page = render([board.report()])
    for title in ("Largest attention logit", "Attention entropy, of log(keys)", "Load of experts", "second moment, root mean"):
        assert title in page
    assert ">limit 100<" in page and "attention, head 1" in page


def test_gauges_are_bounded_and_keep_their_largest_value():
    kept = Gauges()
    for step in range(1000):
        kept.note("second-moment-lag", "w", "", step, 50.0 if step == 500 else 1.0 + 0.01 * (step % 7))
        if step % 50 == 49:
            kept.thin(range(0, step, 50))
    (gauge,) = kept.records({})
    assert len(gauge.values) < 80 and (gauge.peak, gauge.peak_step) == (50.0, 500)
    assert gauge.departure is not None and (gauge.departure.step, gauge.departure.lasted, gauge.departure.back) == (500, 1, True)
    kept.note("second-moment-lag", "w", "", 1000, math.nan)
    assert next(iter(kept.records({}))).steps[-1] == 950


def test_a_look_between_two_measured_steps_is_no_second_one():
    kept = Gauges()
    for step in range(0, 500, 50):
        kept.note("second-moment-lag", "w", "", step, 1.0 + 0.01 * (step % 7))
    kept.note("second-moment-lag", "w", "", 463, 5.3, between=True)
    kept.note("second-moment-lag", "w", "", 464, 4.0)
    kept.note("second-moment-lag", "w", "", 514, 1.0)
    (gauge,) = kept.records({})
    assert (gauge.peak, gauge.peak_step) == (5.3, 463)
    assert gauge.departure is not None and (gauge.departure.value, gauge.departure.lasted) == (5.3, 1)
