"""How batches become samples, and samples become training and validation data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradcheck.errors import ConfigError
from gradcheck.loading.objects import from_objects
from gradcheck.training.splits import MOST, samples_of, splitter_of
from tests.trials.problems import classes, sparse_linear

MODEL = nn.Linear(2, 3)


def rows(batches):
    """The inputs of all batches as a set of rows."""
    return {tuple(row.tolist()) for x, _ in batches for row in x}


def test_batches_of_samples_are_joined_and_taken_apart_again():
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10) % 3
    found = samples_of([(x[:6], y[:6]), (x[6:], y[6:])], MODEL)
    assert found is not None and (found.count, found.size) == (10, 6)
    assert found.labels is not None and found.labels.tolist() == y.tolist()
    inputs, labels = found.take([7, 2])
    assert torch.equal(inputs, x[[7, 2]]) and torch.equal(labels, y[[7, 2]])


@pytest.mark.parametrize(
    "batches",
    [
        [(torch.zeros(5, 4, 2), torch.zeros(4))],  # time first: the axes are not the same
        [(torch.zeros(4, 2), torch.zeros(4)), (torch.zeros(4, 3), torch.zeros(4))],  # ragged
        [(torch.tensor(1.0),)],
        [],
    ],
)
def test_what_has_no_samples_is_not_taken_apart(batches):
    assert samples_of(batches, MODEL) is None


def test_dictionaries_of_samples_keep_their_kind():
    found = samples_of([{"x": torch.zeros(4, 2), "labels": torch.tensor([0, 1, 0, 1])}], MODEL)
    assert found is not None and set(found.take([1])) == {"x", "labels"} and found.labels is not None


def test_every_seed_holds_out_another_stratified_share():
    workload = classes(96).workload()
    dealing = splitter_of(workload)
    whole = rows(workload.batches)
    held = []
    for seed in range(3):
        training, validation = dealing.split(seed)
        assert rows(training) | rows(validation) == whole and not rows(training) & rows(validation)
        assert len(rows(validation)) == 24
        held.append(rows(validation))
        counts = torch.bincount(torch.cat([y for _, y in validation]))
        everyone = torch.bincount(torch.cat([y for _, y in workload.batches]))
        assert torch.all((counts - everyone / 4).abs() <= 1)
    assert held[0] != held[1] and dealing.split(1)[1][0][0].equal(dealing.split(1)[1][0][0])


def test_folds_hold_out_every_sample_once():
    workload = classes(90).workload()
    dealing = splitter_of(workload, folds=3)
    parts = [rows(dealing.split(seed)[1]) for seed in range(3)]
    assert set.union(*parts) == rows(workload.batches) and sum(map(len, parts)) == 90
    assert rows(dealing.split(3)[1]) != parts[0]
    assert dealing.overlap == pytest.approx(0.5)


def test_time_ordered_holds_out_the_last_samples():
    workload = classes(40).workload()
    training, validation = splitter_of(workload, time_ordered=True).split(5)
    last = torch.cat([x for x, _ in workload.batches])[30:]
    assert torch.equal(torch.cat([x for x, _ in validation]), last) and len(rows(training)) == 30


def test_given_validation_data_are_kept_whole_and_training_data_too():
    workload = sparse_linear().workload()
    dealing = splitter_of(workload)
    training, validation = dealing.split(3)
    assert dealing.how == "given" and dealing.overlap == 0
    assert rows(training) == rows(workload.batches) and rows(validation) == rows(workload.val_batches) and len(validation) == 16


def test_very_many_validation_samples_are_thinned_out():
    x, y = torch.randn(2 * MOST, 2), torch.zeros(2 * MOST, dtype=torch.long)
    workload = from_objects(nn.Linear(2, 3), [(x[:8], y[:8])], loss=nn.CrossEntropyLoss(), val_data=[(x, y)])
    assert len(rows(splitter_of(workload).split(0)[1])) == MOST


def test_data_that_were_made_up_are_not_validated_on():
    workload = from_objects(nn.Linear(4, 2))
    assert splitter_of(workload).how == "none" and splitter_of(workload).split(0)[1] == []


def test_whole_batches_are_held_out_when_they_cannot_be_taken_apart():
    model = nn.RNN(2, 3)
    data = [torch.randn(5 + i, 4, 2) for i in range(8)]  # of unequal lengths
    workload = from_objects(model, data, training_step=lambda m, x: m(x)[0].pow(2).mean())
    dealing = splitter_of(workload)
    training, validation = dealing.split(0)
    assert dealing.how == "batches" and (len(training), len(validation)) == (6, 2)


def test_what_does_not_go_together_is_an_error():
    with pytest.raises(ConfigError, match="exclude each other"):
        splitter_of(sparse_linear().workload(), folds=3)
    with pytest.raises(ConfigError, match="--folds 500"):
        splitter_of(classes(96).workload(), folds=500)
