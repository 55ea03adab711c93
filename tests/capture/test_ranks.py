"""Scripts of several processes: what of their sharding can be read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from gradcheck.capture.facts import Ending
from gradcheck.capture.ranks import ranks_kept
from gradcheck.capture.trainings import left_alone
from gradcheck.errors import TargetError
from gradcheck.workload.copying import memo_for

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")


def test_shards_that_cannot_be_read_are_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        with ranks_kept() as hidden:
            model = FullyShardedDataParallel(nn.Linear(4, 2), device_id=torch.device("cpu"))
            assert hidden == [model]
    finally:
        dist.destroy_process_group()


def test_memory_that_was_given_back_is_not_read() -> None:
    model = nn.Linear(4, 2)
    model.view = model.weight * 1  # type: ignore[assignment]
    memo_for(model)
    model.view.untyped_storage().resize_(0)
    with pytest.raises(TargetError, match="gives the memory"):
        memo_for(model)


def test_a_rank_that_time_ran_out_for_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck() -> None:
        raise TimeoutError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TimeoutError) as caught:
        stuck()
    capture: Any = SimpleNamespace(ending=Ending("budget"), error=caught.value)
    lacking = left_alone(capture)
    assert lacking is not None and lacking.what == "the other ranks"
    assert f"time ran out for rank 0 in line {stuck.__code__.co_firstlineno + 1}" in lacking.why
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert left_alone(capture) is None
