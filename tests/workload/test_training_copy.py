from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.errors import TargetError
from gradcheck.training.trainer import take_step
from gradcheck.workload.training_copy import TrainingCopy, fork
from gradcheck.workload.workload import Workload
from tests.measure.workloads import cross_entropy_step, two_clusters, workload

SHARED: dict[str, nn.Module] = {}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def train(copied: TrainingCopy, w: Workload, steps: int = 3) -> None:
    for i in range(steps):
        copied.optimizer.zero_grad()
        copied.loss(w.batches[i % len(w.batches)]).backward()
        take_step(copied, w.batches[i % len(w.batches)])


def assert_only_the_copy_trains(w: Workload) -> TrainingCopy:
    before = state(w.model)
    copied = fork(w)
    started = state(copied.model)
    train(copied, w)
    assert_unchanged(w.model, before)
    assert all(p.grad is None for p in w.model.parameters())
    assert any(not torch.equal(v, started[n]) for n, v in copied.model.state_dict().items())
    return copied


def test_the_copy_trains_and_the_original_stays() -> None:
    assert_only_the_copy_trains(workload())


def test_the_copy_starts_equal_and_in_training_mode() -> None:
    w = workload()
    w.model.eval()
    copied = fork(w)
    assert_unchanged(copied.model, state(w.model))
    assert copied.model.training
    assert not w.model.training


def test_flags_of_single_modules_are_kept_while_the_model_trains() -> None:
    copied = fork(workload())
    assert [m.training for m in copied.model] == [True, False, *[True] * 5]
    assert not copied.model[4].weight.requires_grad


def test_the_optimizer_of_the_copy_holds_the_copies() -> None:
    w = workload()
    copied = fork(w)
    held = [id(p) for g in copied.optimizer.param_groups for p in g["params"]]
    assert held == [id(p) for p in copied.model.parameters()]


def test_optimizer_state_is_copied_under_the_copied_parameters() -> None:
    w = workload()
    train(TrainingCopy(w.model, w.optimizer, w.training_step, {}), w)
    w.model.zero_grad(set_to_none=True)
    copied = fork(w)
    assert w.optimizer.state
    for p, q in zip(w.model.parameters(), copied.model.parameters(), strict=True):
        if p in w.optimizer.state:
            ours, theirs = copied.optimizer.state[q]["momentum_buffer"], w.optimizer.state[p]["momentum_buffer"]
            assert torch.equal(ours, theirs)
            assert ours is not theirs
    assert len(copied.optimizer.state) == len(w.optimizer.state)


def with_closure(model: nn.Module) -> Callable[[nn.Module, Any], torch.Tensor]:
    def step(given: nn.Module, batch: Any) -> torch.Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return cross_entropy_step(given, batch) + 0.01 * penalty

    return step


def with_default(model: nn.Module) -> Callable[[nn.Module, Any], torch.Tensor]:
    def step(given: nn.Module, batch: Any, penalized: nn.Module = model) -> torch.Tensor:
        return cross_entropy_step(given, batch) + 0.01 * sum(p.square().sum() for p in penalized.parameters())

    return step


def with_global(model: nn.Module) -> Callable[[nn.Module, Any], torch.Tensor]:
    space: dict[str, Any] = {"model": model, "F": F}
    exec("def step(_, batch):\n    return F.cross_entropy(model(batch[0]), batch[1])", space)  # a script's `model`
    return space["step"]  # type: ignore[no-any-return]


def with_helper(model: nn.Module) -> Callable[[nn.Module, Any], torch.Tensor]:
    space: dict[str, Any] = {"model": model, "F": F}
    exec("def penalty():\n    return sum(p.square().sum() for p in model.parameters())", space)
    exec("def step(m, batch):\n    return F.cross_entropy(m(batch[0]), batch[1]) + 0.01 * penalty()", space)
    return space["step"]  # type: ignore[no-any-return]


def with_partial(model: nn.Module) -> Callable[[nn.Module, Any], torch.Tensor]:
    def step(penalized: nn.Module, given: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy_step(given, batch) + 0.01 * sum(p.square().sum() for p in penalized.parameters())

    return functools.partial(step, model)


class Objective:
    """A training step that is a method of an object that holds the model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def step(self, given: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy_step(self.model, batch)


@pytest.mark.parametrize(
    "make", [with_closure, with_default, with_global, with_helper, with_partial, lambda m: Objective(m).step], ids=lambda f: f.__name__
)
def test_a_step_that_reaches_the_model_on_its_own_is_given_the_copy(make: Callable[[nn.Module], Any]) -> None:
    w = workload()
    w.training_step = make(w.model)
    assert_only_the_copy_trains(w)


def test_a_recursive_step_is_copied() -> None:
    w = workload()
    model = w.model

    def step(given: nn.Module, batch: Any, depth: int = 1) -> torch.Tensor:
        return step(given, batch, 0) if depth else F.cross_entropy(model(batch[0]), batch[1])

    w.training_step = step
    before = state(model)
    train(fork(w), w)
    assert all(p.grad is None for p in model.parameters())
    for (name, value), old in zip(model.state_dict().items(), before.values(), strict=True):
        assert torch.equal(value, old), name


def test_a_learning_rate_scheduler_stays_with_the_original() -> None:
    w = workload()
    scheduler = torch.optim.lr_scheduler.StepLR(w.optimizer, 1, gamma=0.1)
    count = w.optimizer._opt_called if hasattr(w.optimizer, "_opt_called") else None
    assert_only_the_copy_trains(w)
    assert (w.optimizer._opt_called if hasattr(w.optimizer, "_opt_called") else None) == count
    assert scheduler.get_last_lr() == [0.05]
    assert w.optimizer.param_groups[0]["lr"] == 0.05


def test_hooks_of_the_optimizer_do_not_step_the_original() -> None:
    w = workload()
    w.optimizer.register_step_post_hook(
        lambda optimizer, args, kwargs: [p.data.clamp_(-1, 1) for g in optimizer.param_groups for p in g["params"]]
    )
    assert_only_the_copy_trains(w)


@pytest.mark.parametrize("name", ["LBFGS", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Rprop", "ASGD", "Adamax"])
def test_every_optimizer_can_be_copied(name: str) -> None:
    w = workload()
    w.optimizer = getattr(torch.optim, name)([p for p in w.model.parameters() if p.requires_grad], lr=0.01)
    assert_only_the_copy_trains(w)


def test_an_optimizer_that_steps_in_the_backward_pass_of_a_foreign_class() -> None:
    class Signed(torch.optim.Optimizer):
        """Keeps its own list beside the groups, as LBFGS does."""

        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.01})
            self.mine = self.param_groups[0]["params"]

        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                for p in self.mine:
                    if p.grad is not None:
                        p.sub_(self.param_groups[0]["lr"] * p.grad.sign())

    w = workload()
    w.optimizer = Signed(w.model.parameters())
    assert_only_the_copy_trains(w)


def test_old_weight_norm_can_be_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2))
    model(torch.randn(2, 6))  # its weight is now a result of autograd
    assert_only_the_copy_trains(workload(model))


def test_parametrized_and_spectrally_normed_layers_can_be_copied() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2)))
    assert_only_the_copy_trains(workload(model))


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    model[1].weight = model[0].weight
    copied = assert_only_the_copy_trains(workload(model))
    assert copied.model[1].weight is copied.model[0].weight


def test_a_tensor_that_a_forward_pass_left_on_a_module_is_copied() -> None:
    class Remembers(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = super().forward(x)
            return self.last

    model = nn.Sequential(Remembers(6, 2))
    model(torch.randn(3, 6))
    assert_only_the_copy_trains(workload(model))


def test_a_model_that_cannot_be_copied_is_one_clear_error() -> None:
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle a lock")

    with pytest.raises(TargetError, match="cannot be copied: TypeError: cannot pickle a lock"):
        fork(workload(nn.Sequential(Locked(6, 2))))


@pytest.mark.parametrize(("value", "what"), [(torch.ones(3), r"\[3\]"), (1.5, "float"), (None, "NoneType")])
def test_a_step_that_gives_no_scalar_is_one_clear_error(value: Any, what: str) -> None:
    w = workload(step=lambda model, batch: value)
    with pytest.raises(TargetError, match=what):
        fork(w).loss(w.batches[0])


def test_equal_seeds_give_equal_runs() -> None:
    w = workload()
    runs = []
    for seed in (1, 1, 2):
        copied = fork(w, seed=seed)
        train(copied, w)
        runs.append(torch.cat([p.detach().reshape(-1) for p in copied.model.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_closure_optimizers_are_given_a_closure() -> None:
    w = workload(nn.Linear(6, 2), batches=two_clusters(1))
    w.optimizer = torch.optim.LBFGS(w.model.parameters(), lr=0.5)
    copied = fork(w)
    first = copied.loss(w.batches[0]).item()
    train(copied, w, 2)
    assert copied.loss(w.batches[0]).item() < first


class KeepsNormResting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.head(self.drop(self.norm(x)))


def test_a_train_method_of_the_users_own_has_its_say():
    model = KeepsNormResting()
    model.drop.eval()  # by hand
    assert model.norm.training
    twin = fork(workload(model)).model
    assert (twin.norm.training, twin.drop.training, twin.head.training) == (False, False, True)
    assert model.norm.training
