"""What is set aside takes no memory of the process, comes back bit for bit, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.workload import set_aside as module
from gradcheck.workload.borrowing import Borrowed
from gradcheck.workload.set_aside import empty, fill, set_aside, with_values

MIB = 1 << 20
STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))


def test_values_come_back_bit_for_bit() -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
    tensors = [torch.randn(7, 3).to(kind) for kind in kinds] + [torch.tensor(3.0), torch.empty(0, 2), torch.randn(4, 6).t()]
    for tensor, kept in zip(tensors, set_aside(tensors, files=True), strict=True):
        assert kept.shape == tensor.shape and kept.dtype == tensor.dtype and torch.equal(kept, tensor)
        assert kept.data_ptr() != tensor.data_ptr() or not tensor.numel()


@pytest.mark.skipif(not STATUS.exists(), reason="the resident memory is read from /proc")
def test_a_file_keeps_it_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tensor = torch.randn(32 * MIB // 4)
    before = resident()
    pairs = with_values([tensor])
    assert resident() < before + 8 * MIB
    bits = tensor.numpy().tobytes()
    empty(pairs)
    assert resident() < before + 8 * MIB and not tensor.numel()
    fill(pairs)
    assert tensor.numpy().tobytes() == bits
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(TargetError, match="no room") as raised:
        set_aside([torch.randn(8)], files=True)
    assert "TMPDIR" in (raised.value.hint or "")


def test_an_interrupt_while_the_users_state_is_emptied_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH", 0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values()]
    before = [t.numpy().tobytes() for t in held]
    borrowed = Borrowed([model], spill=True)

    def broken(pairs: Any) -> None:
        empty(pairs[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr("gradcheck.workload.borrowing.empty", broken)
    with pytest.raises(KeyboardInterrupt):
        borrowed.lend(optimizer)
    borrowed.give_back()
    assert [t.numpy().tobytes() for t in held] == before
