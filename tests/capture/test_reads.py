"""What loaders read: data sets of any kind are left alone."""

from __future__ import annotations

from types import SimpleNamespace

from torch.utils.data import DataLoader, WeightedRandomSampler

from gradcheck.capture.reads import Reads


class Adapter:
    """As Keras's adapter of arrays: it has `__len__`, which fails before the arrays are there."""

    array = None

    def __len__(self) -> int:
        return len(self.array[0])  # type: ignore[index]


def test_a_length_that_cannot_be_told_is_not_asked_for_in_vain() -> None:
    loaders = [SimpleNamespace(sampler=s, dataset=Adapter()) for s in (None, WeightedRandomSampler([1.0], 1))]
    assert Reads().found(loaders) is None
    few = DataLoader(list(range(8)), sampler=WeightedRandomSampler([1.0, 1.0], 8))  # type: ignore[arg-type]
    found = Reads().found([few])
    assert found is not None and (found.reachable, found.available) == (2, 8)
