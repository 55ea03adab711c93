"""Blocks normalise before their branches, and queries and keys start smaller."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies import transformer
from gradcheck.workload.treated import Inapplicable
from tests.remedies.patients import batches, finding, held, losses, measured, outputs, patient, treated, unchanged

SEQUENCES = batches((5, 16))
SHARP = finding("ACT005", "body")


class Pooled(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(1))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    return Pooled(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mix, self.feed = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.mix(x))
        return self.norm2(self.feed(x) + x)


def own() -> nn.Module:
    torch.manual_seed(0)
    return Pooled(nn.Sequential(Block(), Block(), Block()))


def test_torchs_blocks_are_turned_and_their_stack_closed_by_a_norm() -> None:
    model = encoder()
    with unchanged(model):
        one = treated(transformer.pre_norm, model, finding("NORM008"), data=SEQUENCES)
    slow = one.workload.batches[0][0]
    for layer in model.body.layers:
        layer.norm_first = True
        slow = layer(slow)
        layer.norm_first = False
    torch.testing.assert_close(outputs(one), model.head(F.layer_norm(slow, (16,)).mean(1)))
    assert held(one) == {id(p) for p in one.model.parameters()}
    assert not any(n.added for n in measured(one.model, SEQUENCES).norms)


def test_blocks_of_the_users_own_are_turned_in_their_code() -> None:
    model = own()
    with unchanged(model):
        one = treated(transformer.pre_norm, model, finding("NORM008"), data=SEQUENCES)
    x = one.workload.batches[0][0]
    for block in model.body:
        x = x + block.mix(block.norm1(x))
        x = block.feed(block.norm2(x)) + x
    torch.testing.assert_close(outputs(one), model.head(x.mean(1)))
    assert losses(one)[-1] < losses(one)[0]


def test_what_has_no_such_form_is_refused() -> None:
    one = patient(Pooled(nn.LayerNorm(16)), data=SEQUENCES)
    with pytest.raises(Inapplicable, match="no form that can be turned"):
        transformer.pre_norm.apply(one, transformer.pre_norm.fix("", layers=("body",)))


# ------------------------------------------------------------------------- queries and keys


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(16, 48)
        nn.init.normal_(self.qkv.weight, std=3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Separate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        for layer in (self.q_proj, self.k_proj):
            nn.init.normal_(layer.weight, std=3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("make", [Fused, Separate])
def test_the_logits_start_with_standard_deviation_one(make: type[nn.Module]) -> None:
    model = Pooled(make())
    with unchanged(model):
        one = treated(transformer.smaller_query_key_init, model, SHARP, data=SEQUENCES, rule="ACT005")
    (before,), (after,) = measured(model, SEQUENCES, rule="ACT005").attentions, measured(one.model, SEQUENCES, rule="ACT005").attentions
    assert (before.logit_std or 0) > 20 and after.logit_std == pytest.approx(1.0, rel=0.1)
    values = one.model.body.qkv.weight[32:] if make is Fused else one.model.body.v_proj.weight
    assert torch.equal(values, model.body.qkv.weight[32:] if make is Fused else model.body.v_proj.weight)


@pytest.mark.parametrize("width", [None, 12], ids=["one matrix", "three"])
def test_torchs_attention(width: int | None) -> None:
    layer = nn.MultiheadAttention(16, 2, kdim=width, vdim=width, batch_first=True)
    one = patient(nn.Sequential(nn.Linear(16, 4)))
    one.workload.model = nn.Sequential(layer)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    transformer.smaller(one, transformer.smaller_query_key_init.fix("", layers=("0",), settings={"factor": 0.5}))
    for key, now in layer.state_dict().items():
        scaled = before[key].clone()
        if key.startswith("in_proj"):
            scaled[:32] *= 0.5
        elif key in ("q_proj_weight", "k_proj_weight"):
            scaled *= 0.5
        assert torch.equal(now, scaled), key


def test_separate_queries_and_keys_are_normalised_and_fused_ones_refused() -> None:
    model = Pooled(Separate())
    one = treated(transformer.qk_norm, model, SHARP, data=SEQUENCES, rule="ACT005")
    assert (measured(one.model, SEQUENCES, rule="ACT005").attentions[0].logit_std or 0) < 2
    (wanted,) = transformer.qk_norm.propose(SHARP, measured(model, SEQUENCES, rule="ACT005"))
    assert wanted.settings["projections"] == "body.q_proj,body.k_proj"
    fused = Pooled(Fused())
    with pytest.raises(Inapplicable, match="one matrix makes"):
        treated(transformer.qk_norm, fused, SHARP, data=SEQUENCES, rule="ACT005")
