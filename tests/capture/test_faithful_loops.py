"""Loops of many kinds of models and batches: trained again from what was recorded, they end with the weights of the script."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.training.trainer import take_step
from gradcheck.workload.training_copy import fork
from tests.capture import batch_loops, model_loops
from tests.capture.batch_loops import against_another_that_has_stepped, an_inverse_in_the_prior, bare_against_another_that_has_stepped
from tests.capture.model_loops import (
    adapters_on_a_frozen_base,
    cannot_be_copied,
    free_parameter_inside_a_module,
    hook_that_holds_the_model,
    lambda_over_a_submodule,
    makes_its_copies_itself,
    mlp,
    module_outside_the_model,
    shared_encoder,
    trained,
)
from tests.capture.test_recorder import Loop, recorded, workloads

Tensor = torch.Tensor


MODULES = (model_loops, batch_loops)
LOOPS = [
    f
    for m in MODULES
    for f in vars(m).values()
    if inspect.isfunction(f) and f.__module__ == m.__name__ and not inspect.signature(f).parameters
]


SEVERAL = (against_another_that_has_stepped, bare_against_another_that_has_stepped)  # trainings


@pytest.mark.parametrize("loop", [f for f in LOOPS if f not in (mlp, *SEVERAL)], ids=lambda f: f.__name__)
def test_it_is_trained_again(loop: Loop) -> None:
    recorder, expected = recorded(loop)
    (workload,) = workloads(recorder)
    copy = fork(workload)
    for batch in workload.batches:
        copy.optimizer.zero_grad()
        copy.loss(batch).backward()
        take_step(copy, batch)
    found = sorted((tuple(p.shape), p.detach().sum().item()) for p in copy.model.parameters() if p.requires_grad)
    held = {id(p): p for w in recorder.optimizers.values() for p in w.parameters}
    if workload.borrowed is not None:
        workload.borrowed.give_back()
    wanted = sorted((tuple(p.shape), p.detach().sum().item()) for p in held.values())
    assert [shape for shape, _ in found] == [shape for shape, _ in wanted]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], abs=1e-4)
    assert expected


@pytest.mark.parametrize("loop", SEVERAL)
def test_a_training_starts_from_what_another_one_has_left(loop: Loop) -> None:
    recorder, _ = recorded(loop)
    for workload in workloads(recorder):
        assert math.isfinite(fork(workload).loss(workload.batches[0]).item())  # workloads compares the first losses


@pytest.mark.parametrize("loop", [module_outside_the_model, cannot_be_copied, makes_its_copies_itself, free_parameter_inside_a_module])
def test_what_no_copy_can_do_is_done_in_place(loop: Loop) -> None:
    recorder, _ = recorded(loop)
    (workload,) = workloads(recorder)
    assert workload.borrowed is not None and workload.borrowed.why


@pytest.mark.parametrize(
    "loop", [lambda_over_a_submodule, hook_that_holds_the_model, adapters_on_a_frozen_base, shared_encoder, an_inverse_in_the_prior]
)
def test_what_a_copy_can_do_is_done_on_one(loop: Loop) -> None:
    recorder, _ = recorded(loop)
    (workload,) = workloads(recorder)
    assert workload.borrowed is None


def test_noise_that_a_module_draws_from_numpy_is_that_of_the_script() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor(np.random.normal(0, 1, (len(x), 3)), dtype=torch.float32)

    def loop() -> list[Any]:
        model = Noisy(4, 3)
        return trained(model, lambda x, y: F.cross_entropy(model(x), y))

    (workload,) = workloads(recorded(loop)[0])
    assert workload.borrowed is None
