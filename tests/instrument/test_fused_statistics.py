from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from gradcheck.instrument import fused_statistics


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_gives_what_plain_reductions_give() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.instrument.interpreted"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_other_devices_take_the_plain_way() -> None:
    assert fused_statistics.reduced(torch.ones(2, 3)) is None
