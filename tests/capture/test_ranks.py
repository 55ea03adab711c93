"""Scripts of several processes: what of their sharding can be read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from gradcheck.capture.ranks import ranks_kept
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
