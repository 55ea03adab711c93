"""Augmentations are redrawn at each step, keep shapes and targets, and are the same for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.regularization.augmentation import Mixed, crop, drop_tokens, flip, mix, mixed_loss, noise, shift
from gradcheck.workload.treated import Inapplicable, treated_copy
from tests.remedies.recipes import measured, net, order, patient, regression, workload


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2, size: int = 12) -> list[Any]:
    made = generator(5)
    return [(torch.randn(size, 2, 8, 8, generator=made), torch.randint(3, (size,), generator=made)) for _ in range(count)]


def image_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_flips_mirror_some_of_the_images() -> None:
    x, _ = images()[0]
    new, label = flip(0, (x, "y"), generator())
    assert label == "y"
    kinds = ["same" if torch.equal(a, b) else "mirrored" if torch.equal(a, b.flip(-1)) else "?" for a, b in zip(new, x, strict=True)]
    assert set(kinds) == {"same", "mirrored"}


@pytest.mark.parametrize(("move", "mode"), [(shift, "replicate"), (crop, "constant")])
def test_shifts_and_crops_are_windows_of_the_padded_image(move: Any, mode: str) -> None:
    x, y = images()[0]
    new, target = move(0, 0.25, (x, y), generator())
    assert new.shape == x.shape and target is y
    padded = F.pad(x, (2, 2, 2, 2), mode=mode)
    found = []
    for image, large in zip(new, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if torch.equal(image, large[:, i : i + 8, j : j + 8])]
        assert places
        found.append(places[0])
    assert len(set(found)) > 4


def test_noise_has_the_scale_of_each_feature() -> None:
    x = torch.randn(4000, 2, generator=generator()) * torch.tensor([1.0, 50.0]) + 7
    (new,) = noise(0, 0.1, (x,), generator(1))
    assert (new - x).std(0).tolist() == pytest.approx([0.1, 5.0], rel=0.1)


def test_mixed_values_and_mixed_labels() -> None:
    x, y = torch.arange(6.0)[:, None], torch.arange(6.0)
    new, target = mix(0, 1, 0.5, (x, y), generator(3))
    torch.testing.assert_close(new[:, 0], target)
    assert not torch.equal(new, x)
    labels = torch.arange(6)
    new, target = mix(0, 1, 0.5, (x, labels), generator(3))
    assert isinstance(target, Mixed) and torch.equal(target.first, labels)
    torch.testing.assert_close(new[:, 0], target.share * labels + (1 - target.share) * target.second)


def test_the_loss_of_mixed_labels_is_that_of_soft_labels() -> None:
    torch.manual_seed(0)
    output, first, second = torch.randn(5, 3), torch.randint(3, (5,)), torch.randint(3, (5,))
    soft = 0.3 * F.one_hot(first, 3) + 0.7 * F.one_hot(second, 3)
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t)):
        torch.testing.assert_close(mixed_loss(loss, output, Mixed(first, second, 0.3)), F.cross_entropy(output, soft))
        torch.testing.assert_close(mixed_loss(loss, output, first), F.cross_entropy(output, first))


def test_shares_follow_a_beta_distribution() -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))."""
    x, y, g = torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), generator()
    shares = torch.tensor([mix(0, 1, 0.4, (x, y), g)[1].share for _ in range(4000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * 1.8), rel=0.08)


def test_some_tokens_become_others_of_the_batch() -> None:
    x = torch.randint(100, (50, 40), generator=generator())
    (new,) = drop_tokens(0, 0.25, (x,), generator(1))
    assert (new != x).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert set(new.flatten().tolist()) <= set(x.flatten().tolist())


@pytest.mark.parametrize("name", ["random-flip", "random-shift", "random-crop", "input-noise", "mixup"])
def test_a_patient_draws_at_each_step_and_leaves_its_batches_alone(name: str) -> None:
    w = workload(image_net(), images())
    (p,) = CATALOGUE[name].propose(None, measured(w, 6, fast=True).measurement)
    treated = treated_copy(w)
    apply(treated, p)
    treated = treated.copy()
    batch = treated.workload.batches[0]
    assert torch.equal(batch[0], w.batches[0][0])
    one, other, again = (treated.augment(batch, generator(seed)) for seed in (1, 2, 1))
    assert not torch.equal(one[0], other[0]) and torch.equal(one[0], again[0])
    loss = treated.workload.training_step(treated.model, one)
    loss.backward()
    assert torch.isfinite(loss)
    plain = treated.workload.training_step(treated.model, treated.prepare(batch))
    torch.testing.assert_close(plain, w.training_step(w.model, w.batches[0]))


def test_tables_get_noise_and_mixup_but_no_flips() -> None:
    m = measured(workload(net(outputs=1), regression(), F.mse_loss), 6, fast=True).measurement
    for name, count in (("random-flip", 0), ("random-crop", 0), ("token-dropout", 0), ("input-noise", 1), ("mixup", 1)):
        assert len(CATALOGUE[name].propose(None, m)) == count
    with pytest.raises(Inapplicable, match="images"):
        apply(patient(net(outputs=1), regression(), F.mse_loss), order("random-flip"))


def test_text_gets_token_dropout_only() -> None:
    batches = [(torch.randint(20, (8, 5)), torch.randint(3, (8,))) for _ in range(3)]
    model = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(20, 3))
    m = measured(workload(model, batches), 6, fast=True).measurement
    assert CATALOGUE["input-noise"].propose(None, m) == []
    (p,) = CATALOGUE["token-dropout"].propose(None, m)
    treated = patient(model, batches)
    apply(treated, CATALOGUE["token-dropout"].at(p, rate=0.5))
    new = treated.augment(batches[0], generator())
    assert not torch.equal(new[0], batches[0][0]) and torch.equal(new[1], batches[0][1])


def test_labels_cannot_be_mixed_in_a_step_of_the_user_s_own() -> None:
    def training_step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(Inapplicable, match="computes its loss itself"):
        apply(patient(image_net(), images(), training_step=training_step), order("mixup", alpha=0.2))
