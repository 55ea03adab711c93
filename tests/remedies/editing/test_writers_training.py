"""What is written for every step or batch: schedules, adaptive clipping, proximal steps, augmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradcheck.training.clip import clip_adaptively
from gradcheck.types.checks import Clip
from gradcheck.types.fix import Fix
from tests import literals
from tests.remedies.editing.examples import changed, stack
from tests.remedies.editing.sheets import HEAD, Sheet, fix


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


OPTIMIZER = "torch.optim.SGD(model.parameters(), lr=0.1)"


def executed(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(text, names)
    return names


# --------------------------------------------------------------------------------- schedules

EPOCHS = f"""EPOCHS = 30
model = nn.Linear(2, 1)
optimizer = {OPTIMIZER}
for epoch in range(EPOCHS):
    for x, y in [(torch.ones(4, 2), torch.ones(4, 1))] * 3:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    print(epoch)
"""


def looped(text: str) -> Sheet:
    return Sheet(HEAD + text).optimizer(OPTIMIZER, "SGD")


def test_a_cosine_goes_over_all_epochs_and_is_stepped_at_their_ends() -> None:
    sheet = looped(EPOCHS)
    edited = sheet.edited(fix("cosine-schedule", steps=100))
    assert changed(sheet, edited) == [
        "schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)",
        "    schedule.step()",
    ]
    assert executed(edited)["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_a_rate_that_falls_in_steps_falls_after_each_third() -> None:
    sheet = looped(EPOCHS)
    edited = sheet.edited(fix("step-schedule", steps=33, factor=0.1))
    assert "schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=max(1, EPOCHS // 3), gamma=0.1)" in edited
    assert executed(edited)["optimizer"].param_groups[0]["lr"] == pytest.approx(1e-4)
    literal = looped(EPOCHS.replace("range(EPOCHS)", "range(30)"))
    assert "step_size=10, gamma" in literal.edited(fix("step-schedule", steps=33, factor=0.1))


def test_a_single_loop_steps_the_schedule_with_the_optimizer() -> None:
    text = EPOCHS.replace("    for x, y in [(torch.ones(4, 2), torch.ones(4, 1))] * 3:\n", "").replace("        ", "    ")
    sheet = looped(text.replace("model(x), y", "model(torch.ones(4, 2)), torch.ones(4, 1)"))
    edited = sheet.edited(fix("cosine-schedule", steps=100))
    assert "    optimizer.step()\n    schedule.step()\n    print(epoch)\n" in edited


def test_a_model_file_gets_its_schedule_with_the_optimizer() -> None:
    sheet = stack()
    assert changed(sheet, sheet.edited(fix("cosine-schedule", steps=400)))[1:] == [
        "    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=400)  # stepped by the training loop",
        "    return optimizer",
    ]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("range(EPOCHS)", "iter(int, 1)", "how long the training is"),
        ("range(EPOCHS)", "range(2, EPOCHS)", "how long the training is"),
        ("EPOCHS = 30\n", "", "is not known where the optimizer is made"),
        ("    print(epoch)", "    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)", "has a schedule of its own"),
    ],
)
def test_a_schedule_is_refused_where_its_length_is_not_known(old: str, new: str, why: str) -> None:
    assert why in looped(EPOCHS.replace(old, new)).refused(fix("cosine-schedule", steps=100))


# ----------------------------------------------------------------------------- adaptive clipping


def test_adaptive_clipping_is_what_the_live_treatment_does() -> None:
    sheet = stack()
    sheet.having(clip=None)
    edited = sheet.edited(fix("adaptive-gradient-clipping", clipping=0.02, exempt="2.weight,2.bias"))
    assert '    optimizer.register_step_pre_hook(AdaptiveClipping(0.02, [*model.get_submodule("2").parameters()]))\n' in edited
    made = executed(edited)
    torch.manual_seed(0)
    model, twin = made["build_model"](), made["build_model"]()
    twin.load_state_dict(model.state_dict())
    for one in (model, twin):
        one(torch.linspace(0, 99, 40).reshape(5, 8)).square().sum().backward()
    clip_adaptively(twin[0].parameters(), 0.02)
    made["make_optimizer"](model).step()  # the hook clips in front of the step
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad)
    assert not torch.allclose(twin[0].weight.grad, torch.zeros(()))


def test_adaptive_clipping_beside_another_kind_is_refused() -> None:
    sheet = stack().having(clip=Clip("norm", 1.0))
    assert "clips already" in sheet.refused(fix("adaptive-gradient-clipping", clipping=0.02, exempt=""))


# -------------------------------------------------------------------------------- augmentations

LOADER = """from torch.utils.data import DataLoader, TensorDataset

images, labels = torch.rand(12, 1, 8, 8), torch.zeros(12)
train_loader = DataLoader(TensorDataset(images, labels), batch_size=6)
val_loader = DataLoader(TensorDataset(images, labels), batch_size=6)
"""


def loaded(text: str = LOADER, kind: str = "values", name: str = "0") -> Sheet:
    inputs = literals.input_facts(name, shape=(6, 1, 8, 8))
    data = literals.data(inputs=(inputs,))
    return Sheet(HEAD + text).having(data=data, losses=(literals.loss_call("mse_loss", target_kind=kind),))


@pytest.mark.parametrize(
    ("treatment", "settings"),
    [
        ("random-flip", {}),
        ("random-shift", {"share": 0.125}),
        ("random-crop", {"share": 0.25}),
        ("input-noise", {"scale": 0.1}),
        ("mixup", {"alpha": 0.4}),
        ("token-dropout", {"rate": 0.5}),
    ],
)
def test_an_augmentation_draws_anew_for_every_batch_of_the_training(treatment: str, settings: dict[str, float]) -> None:
    sheet = loaded()
    edited = sheet.edited(fix(treatment, **settings))
    assert "train_loader = DataLoader(TensorDataset(images, labels), batch_size=6, collate_fn=augmented)\n" in edited
    made = executed(edited)
    first, second = (torch.cat([x for x, _ in made["train_loader"]]) for _ in range(2))
    assert first.shape == made["images"].shape and first.dtype == torch.float32
    assert not torch.equal(first, made["images"]) and not torch.equal(first, second)
    assert torch.equal(torch.cat([x for x, _ in made["val_loader"]]), made["images"])


def test_two_augmentations_share_a_function() -> None:
    edited = loaded().edited(fix("random-flip"), fix("input-noise", scale=0.1))
    assert edited.count("def augmented") == 1 and edited.count("collate_fn") == 1
    assert edited.index("flip(-1)") < edited.index("randn_like")
    executed(edited)


@pytest.mark.parametrize(
    ("text", "kind", "wanted", "why"),
    [
        (LOADER.replace("batch_size=6", "batch_size=6, collate_fn=list"), "values", fix("random-flip"), "function of its own"),
        (LOADER.replace("DataLoader", "Loader"), "values", fix("random-flip"), "no DataLoader"),
        (LOADER, "classes", fix("mixup", alpha=0.2), "class numbers"),
        (LOADER.replace("images, labels)", "images, images, labels)"), "values", fix("random-flip"), "more than an input"),
        (LOADER, "values", fix("random-shift", share=0.01), "too small"),
    ],
)
def test_an_augmentation_is_refused_where_batches_are_not_plain(text: str, kind: str, wanted: Fix, why: str) -> None:
    assert why in loaded(text, kind=kind).refused(wanted)


def test_batches_that_are_no_pairs_are_not_augmented() -> None:
    assert "more than an input" in loaded(name="pixel_values").refused(fix("random-flip"))
