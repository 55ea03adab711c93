"""Marks follow what is computed from a result, with gradient or without."""

from __future__ import annotations

import torch

from gradcheck.instrument.first_pass_recorder import Flow


def test_marks_go_on_to_what_is_computed_from_a_result():
    flow, x = Flow(), torch.ones(3)
    cut = x.detach()
    flow.follow((x,), cut, 7)
    after = cut * 2
    flow.follow((cut, 2), after)
    other = x * 2
    flow.follow((x, 2), other)
    assert flow.of([after]) == {7} and flow.of([other, x]) == set() and flow.of([other, after]) == {7}


def test_a_tensor_that_is_assigned_into_carries_the_mark():
    flow, x, buffer = Flow(), torch.ones(3), torch.zeros(4)
    flow.follow((x,), x, 1)
    flow.follow((buffer, 0, x[0]), None)
    assert flow.of([buffer]) == set()  # a view that was not followed
    flow.follow((buffer, slice(0, 3), x), None)
    assert flow.of([buffer]) == {1}


def test_the_mark_of_a_real_number_ends_in_an_index_and_that_of_an_index_does_not():
    flow, x = Flow(), torch.randn(3)
    flow.follow((), x, 1)
    index = x.argmax()
    flow.follow((x,), index)
    assert flow.of([index]) == set()
    flow.follow((x,), index, 2)
    picked = index.float()
    flow.follow((index,), picked)
    assert flow.of([index]) == flow.of([picked]) == {2}
