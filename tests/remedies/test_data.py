"""Batches on a common scale, in random order, without gaps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.data.batches import complete, moments
from gradcheck.workload.treated import Inapplicable, input_indices, joined, picked, replaced, target_index, tensor_at, treated_copy
from tests.remedies.recipes import classification, measured, net, order, patient, regression, workload


def raw() -> list[Any]:
    """A feature far larger than the others."""
    batches = classification()
    for x, _ in batches:
        x[:, 0] = 40_000 + 10_000 * x[:, 0]
    return batches


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, features: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        return self.body(features) + 0 * extra.sum()


def test_every_feature_is_standardized_over_all_batches() -> None:
    batches = raw()
    w = workload(batches=batches)
    report = measured(w)
    finding = next(f for f in report.findings if f.code == "DATA001")
    (p,) = CATALOGUE["standardize-input"].propose(finding, report.measurement)
    treated = treated_copy(w)
    apply(treated, p)
    whole = torch.cat([x for x, _ in treated.workload.batches])
    for column in whole.T:
        assert column.mean().item() == pytest.approx(0.0, abs=1e-4)
        assert column.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    x, y = treated.prepare(batches[1])
    assert torch.equal(x, treated.workload.batches[1][0]) and torch.equal(y, batches[1][1])
    assert w.batches[0][0][:, 0].mean() > 10_000
    assert not any(f.code == "DATA001" for f in measured(treated.workload).findings)


def test_channels_of_images_and_whole_sequences_share_a_scale() -> None:
    torch.manual_seed(0)
    images = [torch.randn(4, 3, 5, 5) * torch.tensor([1.0, 5.0, 9.0])[:, None, None] + 2 for _ in range(3)]
    mean, std = moments(images, "channel")
    assert mean.shape == (1, 3, 1, 1)
    for c in range(3):
        values = torch.cat([x[:, c].reshape(-1) for x in images]).double()
        assert mean[0, c, 0, 0].item() == pytest.approx(values.mean().item())
        assert std[0, c, 0, 0].item() == pytest.approx(values.std(correction=0).item())
    mean, std = moments(images, "all")
    assert mean.shape == ()
    assert std.item() == pytest.approx(torch.cat([x.reshape(-1) for x in images]).double().std(correction=0).item())


def test_constant_features_and_gaps_do_not_spoil_the_scale() -> None:
    x = torch.tensor([[1.0, 7.0], [3.0, 7.0], [float("nan"), 7.0]])
    mean, std = moments([x], "feature")
    assert mean.flatten().tolist() == [2.0, 7.0]
    assert std.flatten().tolist() == [1.0, 1.0]


def test_integers_are_no_inputs_to_scale() -> None:
    batches = [(torch.randint(10, (4, 5)), torch.randint(3, (4,)))]
    with pytest.raises(Inapplicable, match="floating"):
        apply(
            patient(nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(15, 3)), batches), order("standardize-input", axis="feature")
        )


def test_named_inputs_of_a_dict() -> None:
    torch.manual_seed(0)
    batches = [{"features": 100 + torch.randn(8, 6), "extra": torch.randn(8, 2), "labels": torch.randint(3, (8,))} for _ in range(3)]
    report = measured(workload(Keyed(), batches))
    (p,) = CATALOGUE["standardize-input"].propose(None, report.measurement)
    assert p.settings["input"] == "features"
    treated = patient(Keyed(), batches)
    apply(treated, p)
    new = treated.prepare(batches[0])
    assert new["features"].mean().abs() < 1 and torch.equal(new["extra"], batches[0]["extra"])


@pytest.mark.parametrize("kind", ["torch", "by hand"])
def test_targets_get_zero_mean_and_unit_scale(kind: str) -> None:
    batches = regression(scale=75.0, offset=150.0)
    loss = F.mse_loss if kind == "torch" else lambda o, t: (o - t).square().mean()
    w = workload(net(outputs=1), batches, loss, lambda p: torch.optim.Adam(p, lr=1e-3))
    report = measured(w)
    finding = next(f for f in report.findings if f.code == "DATA003")
    (p,) = CATALOGUE["standardize-target"].propose(finding, report.measurement)
    treated = treated_copy(w)
    apply(treated, p)
    x, y = treated.prepare(batches[0])
    assert torch.equal(x, batches[0][0])
    assert y.mean().item() == pytest.approx(0.0, abs=1e-4) and y.std(correction=0).item() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(y * float(p.settings["std"]) + float(p.settings["mean"]), batches[0][1])
    assert not any(f.code == "DATA003" for f in measured(treated.copy().workload).findings)


def test_targets_of_a_bounded_output_go_into_its_range() -> None:
    batches = regression(scale=5.0)
    model = nn.Sequential(net(outputs=1), nn.Sigmoid())
    report = measured(workload(model, batches, F.mse_loss), 6)
    (p,) = CATALOGUE["standardize-target"].propose(next(f for f in report.findings if f.code == "LOSS001"), report.measurement)
    treated = patient(model, batches, F.mse_loss)
    apply(treated, p)
    y = treated.workload.batches[0][1]
    assert (y.min().item(), y.max().item()) == pytest.approx((0.0, 1.0))


def test_class_labels_are_no_values_to_scale() -> None:
    assert CATALOGUE["standardize-target"].propose(None, measured(workload(), 6).measurement) == []
    with pytest.raises(Inapplicable):
        apply(patient(), order("standardize-target", mean=0.0, std=1.0))


def test_shuffling_deals_the_same_samples_anew() -> None:
    x = torch.arange(32.0)[:, None] * torch.ones(6)
    y = torch.arange(32) // 12
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)]
    report = measured(workload(batches=batches), 6)
    (p,) = CATALOGUE["shuffle-data"].propose(None, report.measurement)
    treated = patient(batches=batches)
    apply(treated, p)
    dealt = treated.workload.batches
    assert [len(b[1]) for b in dealt] == [8, 8, 8, 8]
    assert all(len(set(b[1].tolist())) > 1 for b in dealt)
    assert sorted(torch.cat([b[0][:, 0] for b in dealt]).tolist()) == list(range(32))
    assert all(torch.equal(b[0][:, 0] // 12, b[1].float()) for b in dealt)
    twin = patient(batches=batches)
    apply(twin, p)
    assert torch.equal(twin.workload.batches[2][0], dealt[2][0])


def test_shuffled_data_are_not_proposed_again() -> None:
    assert CATALOGUE["shuffle-data"].propose(None, measured(workload(), 6).measurement) == []


def test_samples_with_gaps_are_left_out() -> None:
    batches = classification()
    batches[1][0][3, 2] = float("nan")
    batches[2][0][:] = float("inf")
    w = workload(batches=batches)
    report = measured(w, 6)
    (p,) = CATALOGUE["clean-data"].propose(next(f for f in report.findings if f.code == "DATA002"), report.measurement)
    treated = treated_copy(w)
    apply(treated, p)
    x, y = treated.workload.batches[1]
    kept = [i for i in range(16) if i != 3]
    assert torch.equal(x, batches[1][0][kept]) and torch.equal(y, batches[1][1][kept])
    assert torch.equal(treated.workload.batches[2][0], torch.zeros(16, 6))
    assert treated.workload.batches[0][0] is batches[0][0]


def test_missing_targets_count_as_gaps() -> None:
    x, y = torch.randn(3, 2), torch.tensor([1.0, float("nan"), 2.0])
    assert torch.equal(complete((x, y))[0], x[[0, 2]])


# --------------------------------------------------------------------------- structures


def test_structures_keep_their_kind() -> None:
    batch = {"x": (torch.zeros(2), [torch.ones(2), "name"]), "y": torch.tensor([1, 2])}
    new = replaced(batch, {1: torch.full((2,), 5.0)})
    assert torch.equal(tensor_at(new, 1), torch.full((2,), 5.0))
    assert isinstance(new["x"], tuple) and new["x"][1][1] == "name" and new["y"] is batch["y"]
    assert torch.equal(tensor_at(batch, 1), torch.ones(2))


def test_the_target_is_found_in_tuples_and_dicts() -> None:
    model = net()
    assert target_index((torch.zeros(2, 6), torch.zeros(2)), model) == 1
    assert target_index(torch.zeros(2, 6), model) is None
    assert target_index({"features": torch.zeros(2, 6), "extra": torch.zeros(2, 1), "labels": torch.zeros(2)}, Keyed()) == 2
    assert input_indices((torch.zeros(2, 6), torch.zeros(2)), model) == [0]


def test_batches_join_along_the_samples() -> None:
    a = (torch.zeros(2, 3), torch.zeros(2))
    b = (torch.ones(4, 3), torch.ones(4))
    assert [t.shape[0] for t in joined([a, b])] == [6, 6]
    assert torch.equal(picked(joined([a, b]), torch.tensor([0, 5]))[1], torch.tensor([0.0, 1.0]))
    with pytest.raises(Inapplicable, match="shapes"):
        joined([a, (torch.ones(4, 5), torch.ones(4))])
    with pytest.raises(Inapplicable, match="each sample"):
        joined([(torch.zeros(2, 3), torch.zeros(5))])
