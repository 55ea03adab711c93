"""What about the arguments of a call made its result NaN or infinite: each reason on a call that shows it, and on one that does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.instrument.domain import reason

X = torch.randn(2, 3, 4)
ALL, SOME = torch.tensor([[True, True, True], [False, True, False]]), torch.tensor([[False, True, True], [False, True, False]])


def ctc(target_lengths: list[int], labels: list[int]) -> dict[str, Any]:
    return {
        "log_probs": torch.randn(4, 2, 5).log_softmax(2),
        "targets": torch.tensor(labels),
        "input_lengths": torch.tensor([4, 4]),
        "target_lengths": torch.tensor(target_lengths),
    }


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "expected"),
    [
        ("__truediv__", (X, torch.tensor([1.0, 0.0, 2.0, 0.0])), {}, ("zero denominators", 2, 4)),
        ("__rtruediv__", (torch.zeros(3), 1.0), {}, ("zero denominators", 3, 3)),
        ("div", (X, 2.0), {}, None),
        ("log", (torch.tensor([0.0, 1.0]),), {}, ("not above zero", 1, 2)),
        ("log", (torch.tensor([0.5, 1.0]),), {}, None),
        ("mean", (torch.zeros(0),), {}, ("empty", 0, 0)),
        ("mean", (torch.zeros(1),), {}, None),
        ("std", (torch.zeros(1),), {}, ("one value", 1, 1)),
        ("std", (torch.zeros(1, 5),), {"dim": 0}, ("one value", 1, 1)),
        ("std", (torch.zeros(1, 5),), {"dim": 1}, None),
        ("softmax", (torch.zeros(2, 3).masked_fill(ALL, -torch.inf),), {"dim": -1}, ("masked rows", 1, 2)),
        ("softmax", (torch.zeros(2, 3).masked_fill(SOME, -torch.inf),), {"dim": -1}, None),
        ("multi_head_attention_forward", (X,), {"key_padding_mask": ALL}, ("masked rows", 1, 2)),
        ("multi_head_attention_forward", (X,), {"key_padding_mask": SOME, "attn_mask": None}, None),
        ("scaled_dot_product_attention", (X, X, X), {"attn_mask": ~ALL}, ("masked rows", 1, 2)),
        ("cross_entropy", (torch.randn(2, 3), torch.tensor([-100, -100])), {}, ("no target", 2, 2)),
        ("cross_entropy", (torch.randn(2, 3), torch.tensor([-100, 1])), {}, None),
        ("ctc_loss", (), ctc([4, 2], [1, 2, 3, 4, 1, 2]), None),
        ("ctc_loss", (), ctc([4, 2], [1, 1, 3, 4, 1, 2]), ("long targets", 1, 2)),  # equal neighbours need a blank between them
        ("ctc_loss", (), ctc([5, 1], [1, 2, 3, 4, 1, 2]), ("long targets", 1, 2)),
        ("matmul", (X, X), {}, None),
        ("div", (), {}, None),  # arguments that it cannot read
    ],
)
def test_reason(name, args, kwargs, expected):
    assert reason(name, args, kwargs) == expected


def test_the_calls_that_are_told_do_give_such_numbers():
    attention = nn.MultiheadAttention(4, 1, batch_first=True)
    assert attention(X, X, X, key_padding_mask=ALL)[0].isnan().any() and not attention(X, X, X, key_padding_mask=SOME)[0].isnan().any()
    found = [F.ctc_loss(**ctc([4, 2], labels), reduction="none").isinf().tolist() for labels in ([1, 2, 3, 4, 1, 2], [1, 1, 3, 4, 1, 2])]
    assert found == [[False, False], [True, False]]
