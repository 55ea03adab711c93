"""A watched loop ends as an unwatched one does, to the last bit, and nothing is left of the watching."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.overrides import TorchFunctionMode

import gradcheck
from tests.live import loops
from tests.live.loops import Kept

HOOKS = (
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
    torch.nn.modules.module._global_forward_hooks_with_kwargs,
    _global_optimizer_pre_hooks,
    _global_optimizer_post_hooks,
)
PLACES: tuple[tuple[Any, str], ...] = (
    (torch.autograd, "backward"),
    (torch.nn.utils, "clip_grad_norm_"),
    (torch.nn.utils.clip_grad, "clip_grad_norm_"),
    (torch.nn.utils.clip_grad, "clip_grad_value_"),
    (torch.nn.Module, "eval"),
    (torch.amp.grad_scaler.GradScaler, "update"),
    (torch.amp.grad_scaler.GradScaler, "scale"),
    (torch.amp.grad_scaler.GradScaler, "step"),
    (torch.amp.grad_scaler.GradScaler, "__init__"),
    (torch.amp.grad_scaler.GradScaler, "unscale_"),
    (torch.optim.Optimizer, "__init__"),
    (torch.optim.Optimizer, "zero_grad"),
    (torch.optim.lr_scheduler.LRScheduler, "__init__"),
    (torch.optim.lr_scheduler.LRScheduler, "step"),
    (torch.optim.lr_scheduler.ReduceLROnPlateau, "step"),
    (torch.utils.data.DataLoader, "__iter__"),
    (torch.utils.data.dataloader._BaseDataLoaderIter, "__next__"),
)


def traces() -> tuple[Any, ...]:
    return (*(len(h) for h in HOOKS), *(vars(home)[name] for home, name in PLACES), torch._C._len_torch_function_stack())


LOOPS: dict[str, Callable[[loops.Watch], list[torch.Tensor]]] = {
    "dropout, batch norm, adam": loops.classify,
    "accumulation": loops.accumulate,
    "scaler": loops.scaled,
    "scaler and clipping": lambda watch: loops.scaled(watch, clip=True),
    "closure": loops.closures,
    "checkpoint": loops.checkpointed,
    "reentrant checkpoint": lambda watch: loops.checkpointed(watch, reentrant=True),
    "adversaries": lambda watch: loops.adversaries(watch, 20),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_watched_loop_leaves_the_same_bits_and_no_trace(name: str, every: int = 3) -> None:
    before = traces()
    bare = LOOPS[name](loops.unwatched)
    kept = Kept(every=every)
    watched = LOOPS[name](kept)
    assert len(bare) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    assert traces() == before
    board = kept.board
    assert board.steps > 5
    measured = board.report().measurement.measured_steps
    assert measured == tuple(t for t in range(board.steps) if t < 4 or t % every == 0)


def test_another_seed_leaves_other_bits() -> None:
    """The comparison above can fail."""
    first, second = (loops.classify(steps=n) for n in (3, 4))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_hooks_are_gone_after_an_exception() -> None:
    before = traces()
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="mine"), gradcheck.watch(model, optimizer) as board:
        model(torch.randn(8, 20))
        raise RuntimeError("mine")
    assert traces() == before
    board.close()
    assert board.findings == ()


def test_what_was_imported_meanwhile_holds_torch_s_own_functions() -> None:
    original = nn.utils.clip_grad_norm_
    module = types.ModuleType("imported_while_watched")
    sys.modules[module.__name__] = module
    try:
        with gradcheck.watch(loops.mlp()):
            exec("from torch.nn.utils import clip_grad_norm_", vars(module))
            assert module.clip_grad_norm_ is not original
        assert module.clip_grad_norm_ is original
    finally:
        del sys.modules[module.__name__]


def test_a_mode_of_the_user_that_ends_inside_the_loop_ends_itself() -> None:
    class Mine(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    before = traces()
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradcheck.watch(model, optimizer, every=1) as board:
        for x, y in loops.batches(6):
            with Mine(), torch.device("cpu"):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            assert not any(isinstance(m, Mine) for m in torch.overrides._get_current_function_mode_stack())
    assert traces() == before
    assert board.failure is None and board.steps == 6
