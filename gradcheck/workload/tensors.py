"""Tensors in a batch of any structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def named_tensors(value: Any, name: str = "input") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a batch with their path in it: "input_ids", "0", "1.2"."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, str(key))
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from named_tensors(item, str(i) if name == "input" else f"{name}.{i}")


def batch_size(batch: Any) -> int:
    first = next((t for _, t in named_tensors(batch) if t.dim()), None)
    return first.shape[0] if first is not None else 1
