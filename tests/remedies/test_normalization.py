"""Normalizations have the right kind and place, biases and dropouts move out of their way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.analysis.depth import gradient_trend
from gradcheck.remedies.modules.surgery import module_at
from gradcheck.remedies.normalization import layers as norm
from gradcheck.types.checks import Dropout
from gradcheck.types.training import Regularization
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from tests.remedies.patients import batches, finding, held, losses, measured, outputs, patient, plain, proposed, treated, unchanged

INSERT, BATCH, LAYER, GROUP = norm.INSERTING


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Conv2d(1 if i == 0 else 12, 12, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


class Tokens(nn.Module):
    """Linear layers over [samples, tokens, features]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(1))


IMAGES, SEQUENCES = (1, 8, 8), (5, 16)


@pytest.mark.parametrize(
    ("treatment", "make", "shape", "kind"),
    [
        (INSERT, plain, (16,), "BatchNorm1d"),
        (INSERT, convolutional, IMAGES, "BatchNorm2d"),
        (INSERT, Tokens, SEQUENCES, "LayerNorm"),
        (BATCH, convolutional, IMAGES, "BatchNorm2d"),
        (LAYER, plain, (16,), "LayerNorm"),
        (LAYER, Tokens, SEQUENCES, "LayerNorm"),
        (GROUP, convolutional, IMAGES, "GroupNorm"),
    ],
    ids=lambda x: getattr(x, "name", getattr(x, "__name__", None)),
)
def test_each_layer_of_the_body_gets_its_norm(treatment: object, make: object, shape: tuple[int, ...], kind: str) -> None:
    model, data = make(), batches(shape)  # type: ignore[operator]
    with unchanged(model):
        one = treated(treatment, model, data=data)  # type: ignore[arg-type]
    assert {type(m).__name__ for m in one.model.modules() if "Norm" in type(m).__name__} == {kind}
    body = [x for x in measured(one.model, data).layers if x.kind in ("linear", "conv") and not x.head]
    assert body and all(x.normalized for x in body)
    assert held(one) == {id(p) for p in one.model.parameters()}
    run = losses(one)
    assert run[-1] < run[0]
    assert not any(has_bias(one, n.after) for n in measured(one.model, data).norms if n.batch)


def has_bias(one: object, name: str | None) -> bool:
    return name is not None and getattr(one.model.get_submodule(name), "bias", None) is not None  # type: ignore[attr-defined]


def test_small_batches_get_a_norm_that_needs_none() -> None:
    data = batches(size=4)
    assert proposed(INSERT, plain(), data=data).settings["kind"] == "LayerNorm"
    assert proposed(INSERT, convolutional(), data=batches(IMAGES, size=4)).settings["kind"] == "GroupNorm"


def test_a_deep_plain_net_trains_with_it() -> None:
    model = plain(20)
    assert gradient_trend(measured(model)).total > 4
    assert abs(gradient_trend(measured(treated(INSERT, model, finding("NORM001")).model)).total) < 4


def test_group_sizes_divide_the_channels() -> None:
    assert [norm.groups_of(c) for c in (1, 7, 12, 64, 96)] == [1, 7, 6, 8, 8]


# ------------------------------------------------------------------------------- batch norm


def test_batch_norm_becomes_one_that_does_not_mix_samples() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.constant_(model[1].weight, 3.0)
    one = treated(norm.batch_free_normalization, model, finding("NORM003", "1"), data=batches(size=2))
    x = one.workload.batches[0][0]
    torch.testing.assert_close(one.model(x)[:1], one.model(x[:1]))
    assert isinstance(one.model[1], nn.LayerNorm) and one.model[1].weight.eq(3.0).all()
    kept = {k for k in model.state_dict() if "running" not in k and "tracked" not in k}
    assert set(one.model.state_dict()) == kept and held(one) == {id(p) for p in one.model.parameters()}


def test_in_images_it_becomes_group_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 4))
    one = treated(norm.batch_free_normalization, model, finding("NORM003", "1"), data=batches(IMAGES, size=2))
    assert isinstance(one.model[1], nn.GroupNorm) and one.model[1].num_groups == 6


def test_a_norm_of_another_kind_is_refused() -> None:
    one = patient(plain(2))
    with pytest.raises(Inapplicable, match="not a batch normalization"):
        norm.without_batch(one, norm.batch_free_normalization.fix("", layers=("0",), settings={"kind": "LayerNorm"}))


def test_a_bias_without_effect_goes_and_the_output_stays() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    with unchanged(model):
        one = treated(norm.remove_bias, model, finding("NORM007", "0"))
    torch.testing.assert_close(outputs(one), nn.Sequential(*model)(one.workload.batches[0][0]))
    assert one.model[0].bias is None and id(model[0].bias) not in held(one) and len(held(one)) == 5


# ---------------------------------------------------------------------------------- dropout


def test_dropout_changes_places_inside_a_sequential() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 4))
    with unchanged(model):
        one = treated(norm.move_dropout, model, finding("NORM004", "3"))
    assert [type(m).__name__ for m in one.model] == ["Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    assert isinstance(module_at(one, "3"), nn.BatchNorm1d) and isinstance(module_at(one, "2"), nn.Dropout)
    assert module_at(one, "4").out_features == 4


class Scattered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.norm, self.head = nn.Linear(16, 8), nn.Dropout(0.4), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.drop(torch.relu(self.first(x)))))


class Called(Scattered):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(F.dropout(torch.relu(self.first(x)), 0.4, self.training)))


def test_elsewhere_it_follows_the_norm() -> None:
    check_moved(treated(norm.move_dropout, Scattered(), finding("NORM004", "norm")))


def test_a_call_is_taken_out_of_the_code() -> None:
    model = Called()
    m = measured(model)
    faulty = m.norms[0].site
    assert faulty is not None
    site = replace(faulty, column=faulty.column + len("self.norm("), end_column=faulty.end_column - 1)
    m = replace(m, regularization=Regularization(dropouts=(Dropout(":dropout", 0.4, site),)))
    one = patient(model)
    norm.move_dropout.apply(one, norm.move_dropout.propose(finding("NORM004", "norm"), m)[0])
    check_moved(one)


def check_moved(one: TreatedWorkload) -> None:
    assert [type(m).__name__ for m in one.model.norm] == ["BatchNorm1d", "Dropout"] and one.model.norm[1].p == 0.4
    assert not any(n.dropout is not None for n in measured(one.model).norms)
