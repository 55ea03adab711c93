"""What feeds what, on nets whose answer can be read off or computed in another way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.instrument import data_flow
from gradcheck.instrument.data_flow import Linked
from gradcheck.instrument.first_pass_recorder import FirstPassRecorder
from gradcheck.instrument.graph_structure import Graph

BN = nn.BatchNorm1d


class Through(nn.Module):
    """A function with the layers that it uses."""

    def __init__(self, function, **layers) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def linked(model: nn.Module, x: torch.Tensor) -> Linked:
    torch.manual_seed(0)
    taps = FirstPassRecorder({id(m): name for name, m in model.named_modules()})
    with taps:
        loss = model(x).square().mean()
        taps.ends_in(loss)
    assert taps.failures == {}
    stopped = {node for cut in taps.cuts.values() if cut.reaches for node in cut.nodes}
    return data_flow.read(Graph(loss.grad_fn), taps.calls, taps.seen, {}, stopped)


def chain(*between) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *between, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


class Act(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=-1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class TestPairs:
    @pytest.mark.parametrize(
        "between",
        [
            (),
            (nn.Dropout(0.5),),
            (nn.Identity(),),
            (BN(6),),
            (Through(lambda m, x: 2 * x + 1),),
            (Through(lambda m, x: x.view(4, 2, 3).flatten(1)),),
            (Through(lambda m, x: F.dropout(x, 0.1)),),
            (Through(lambda m, x: x * m.gain + m.gain, gain=nn.Parameter(torch.ones(6))),),
        ],
    )
    def test_affine_operations_make_one_map_of_two_layers(self, between):
        (found,) = linked(chain(*between), torch.randn(4, 6)).pairs
        assert (found.first, found.second) == ("0", f"{1 + len(between)}") and found.alone and (found.inputs, found.inner) == (6, 6)
        assert found.batch_norm == any(isinstance(x, BN) for x in between)

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x.relu(),
            lambda x: x * (x > 0),
            lambda x: torch.where(x > 0, x, 0 * x),
            lambda x: x.clamp(-1, 1),
            lambda x: x.abs(),
            lambda x: x + x.sin(),
            lambda x: x / (1 + x.abs()),
            lambda x: torch.maximum(x, 0.1 * x),
            lambda x: F.layer_norm(x, (6,)),
            lambda x: F.normalize(x),
            lambda x: Act.apply(x),
        ],
    )
    def test_anything_else_parts_them(self, function):
        assert linked(chain(Through(lambda m, x: function(x))), torch.randn(4, 6)).pairs == ()

    def test_matrix_products_with_parameters_are_layers(self):
        w, v = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 3))
        (found,) = linked(Through(lambda m, x: (x @ m.w + 1) @ m.v, w=w, v=v), torch.randn(4, 6)).pairs
        assert (found.inputs, found.inner, found.outputs) == (6, 8, 3)

    def test_a_layer_that_is_used_elsewhere_is_not_alone(self):
        model = Through(lambda m, x: m.b(h := m.a(x)) + h, a=nn.Linear(6, 6), b=nn.Linear(6, 6))
        assert [p.alone for p in linked(model, torch.randn(4, 6)).pairs] == [False]

    def test_a_layer_whose_output_is_a_target_without_gradient_is_not_alone(self):
        model = Through(lambda m, x: m.b(h := m.a(x)) - h.detach(), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
        assert [p.alone for p in linked(model, torch.randn(4, 6)).pairs] == [False]

    def test_a_layer_that_is_called_twice_pairs_only_when_every_call_does(self):
        once = Through(lambda m, x: m.b(m.a(x)) + m.b(m.a(2 * x)), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
        other = Through(lambda m, x: m.b(m.a(x)) + m.b(m.a(2 * x).relu()), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
        assert len(linked(once, torch.randn(4, 6)).pairs) == 1 and linked(other, torch.randn(4, 6)).pairs == ()

    def test_average_pooling_is_linear_and_maximum_pooling_is_not(self):
        for pool, count in ((nn.AvgPool2d(2), 1), (nn.MaxPool2d(2), 0)):
            model = nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Conv2d(4, 4, 3), nn.ReLU())
            assert len(linked(model, torch.randn(2, 3, 12, 12)).pairs) == count

    def test_a_linear_layer_before_a_convolution_is_no_pair(self):
        model = Through(lambda m, x: m.b(m.a(x).view(-1, 4, 3, 3)), a=nn.Linear(6, 36), b=nn.Conv2d(4, 2, 3))
        assert linked(model, torch.randn(4, 6)).pairs == ()

    def test_the_output_projection_of_an_attention_projects(self):
        def attend(m, x):
            return m.b(m.a(torch.softmax(x @ x.transpose(1, 2), -1) @ m.v(x)))

        model = Through(attend, a=nn.Linear(6, 6), b=nn.Linear(6, 6), v=nn.Linear(6, 6))
        assert [p.projects for p in linked(model, torch.randn(4, 5, 6)).pairs] == [True]


class TestNorms:
    def test_facts_of_batch_normalization(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.03), nn.ReLU())
        (found,) = linked(model, torch.randn(2, 3, 7, 7)).norms
        assert (found.layer, found.values, found.momentum, found.after) == ("1", 2 * 5 * 5, 0.03, "0")
        assert found.batch and found.of_batch and found.tracks and found.fresh and found.trains

    @pytest.mark.parametrize("function", [F.batch_norm, None])
    def test_functions_are_seen_as_modules_are(self, function):
        def call(m, x):
            if function is None:
                return torch.batch_norm(m.a(x), None, None, m.mean, m.variance, False, 0.2, 1e-5, False)
            return function(m.a(x), m.mean, m.variance, training=False, momentum=0.2)

        model = Through(call, a=nn.Linear(6, 6))
        model.register_buffer("mean", torch.zeros(6))
        model.register_buffer("variance", torch.ones(6))
        (found,) = linked(model, torch.randn(4, 6)).norms
        assert found.batch and not found.of_batch and found.fresh and found.momentum == 0.2
        model.mean.add_(0.1)
        assert not linked(model, torch.randn(4, 6)).norms[0].fresh

    def test_a_cumulative_average_has_no_momentum(self):
        assert linked(nn.Sequential(nn.Linear(6, 6), BN(6, momentum=None)), torch.randn(4, 6)).norms[0].momentum is None

    def test_statistics_of_frozen_layers(self):
        model = nn.Sequential(nn.Linear(6, 6), BN(6), nn.Linear(6, 3))
        for p in (*model[0].parameters(), *model[1].parameters()):
            p.requires_grad_(False)
        model[1].eval()
        (found,) = linked(model, torch.randn(4, 6)).norms
        assert not found.trains and not found.of_batch

    def test_standardised_weights_are_no_activations(self):
        def conv(m, x):
            return F.conv2d(x, F.batch_norm(m.w.reshape(1, 4, -1), None, None, training=True).reshape_as(m.w))

        assert linked(Through(conv, w=nn.Parameter(torch.randn(4, 3, 3, 3))), torch.randn(2, 3, 7, 7)).norms == ()

    @pytest.mark.parametrize(("first", "expected"), [(False, [False, True, True, True]), (True, [False] * 4)])
    def test_post_norm_sums_are_told_from_pre_norm_ones(self, first, expected):
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=first)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        assert [n.added for n in linked(model, torch.randn(4, 5, 8)).norms] == expected


class TestDropout:
    @pytest.mark.parametrize(
        ("layers", "expected", "near"),
        [
            ((nn.Dropout(0.3), BN(6)), 0.3, True),
            ((nn.Dropout(0.3), nn.Linear(6, 6), nn.ReLU(), BN(6)), 0.3, False),
            ((nn.Dropout(0.3), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), BN(6)), 0.0, False),
            ((nn.Dropout(0.3), nn.LayerNorm(6), BN(6)), 0.0, False),
            ((nn.Dropout(0.0), BN(6)), 0.0, False),
            ((nn.AlphaDropout(0.3), BN(6)), 0.0, False),  # keeps the variance
            ((BN(6), nn.Dropout(0.3)), 0.0, False),
        ],
    )
    def test_the_dropout_that_reaches_a_norm(self, layers, expected, near):
        found = linked(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), *layers), torch.randn(64, 6)).norms
        bn = next(n for n in found if n.batch)
        assert (bn.dropout_rate, bn.dropout is not None) == (expected, expected > 0)
        assert (bn.dropout_shift is not None) == near

    def test_the_shift_is_what_sampling_gives(self):
        x = torch.relu(torch.randn(20000, 6, generator=torch.Generator().manual_seed(0)))
        model = Through(lambda m, y: m.bn(F.dropout(y * m.one, 0.4)), bn=BN(6), one=nn.Parameter(torch.ones(6)))
        dropped = F.dropout(x, 0.4)
        assert linked(model, x).norms[0].dropout_shift == pytest.approx((dropped.var(0).mean() / x.var(0).mean()).item(), rel=0.03)


class TestStreams:
    def test_sizes_are_those_of_the_sums(self):
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.start, self.blocks = nn.Linear(6, 6), nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

            def forward(self, x, sizes=None):
                x = self.start(x)
                for block in self.blocks:
                    h = torch.relu(block(x))
                    if sizes is not None:
                        sizes.append((x.square().mean().sqrt().item(), h.square().mean().sqrt().item()))
                    x = x + h
                return x

        model, x, sizes = Residual(), torch.randn(16, 6), []
        end = model(x, sizes).square().mean().sqrt().item()
        (found,) = linked(model, x).streams
        assert found.start == pytest.approx(sizes[0][0]) and found.end == pytest.approx(end)
        assert found.ratios == pytest.approx([b / a for a, b in sizes])
        assert not found.normalized and found.layers == ("", "", "")

    @pytest.mark.parametrize("add", [torch.add, lambda a, b: b.add(a), lambda a, b: b.add_(a), lambda a, b: a + b])
    def test_spellings_of_a_sum(self, add):
        model = Through(lambda m, x: add(y := add(h := m.a(x), m.b(h)), m.b(y)), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
        assert [len(s.ratios) for s in linked(model, torch.randn(4, 6)).streams] == [2]

    def test_a_norm_at_the_end_is_seen(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        for end in (nn.LayerNorm(8), None):
            model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 2, end, enable_nested_tensor=False))
            (found,) = linked(model, torch.randn(4, 5, 8)).streams
            assert found.normalized == (end is not None) and len(found.ratios) == 4

    def test_sums_without_a_bypass_are_none(self):
        model = Through(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6))
        assert linked(model, torch.randn(4, 6)).streams == ()
