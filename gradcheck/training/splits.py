"""Batches as single samples, and how they are split into training and validation data for each seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradcheck.errors import ConfigError
from gradcheck.workload.step import split
from gradcheck.workload.tensors import map_structure, tensors_of
from gradcheck.workload.workload import Batch, Workload

SHARE = 0.25  # share of the samples that validation gets if none are given for it
LARGEST = 256  # samples in a validation batch
MOST = 4096  # validation samples: more would take longer than the training
PARTS = 16  # validation batches, if there are enough samples: how much their losses differ tells how certain their mean is
FEWEST = 8  # samples that can be split
FEWEST_BATCHES = 4  # that can be split whole
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Samples:
    """All batches as one: every tensor has one entry a sample on its first axis."""

    whole: Batch
    count: int
    size: int  # samples in a batch, as they came
    labels: torch.Tensor | None = None  # [count] class labels, for stratified splits

    def take(self, chosen: Sequence[int]) -> Batch:
        index = torch.as_tensor(list(chosen), dtype=torch.long, device="cpu")
        return map_structure(lambda leaf: leaf[index.to(leaf.device)] if isinstance(leaf, torch.Tensor) else leaf, self.whole)

    def batches(self, chosen: Sequence[int], size: int) -> list[Batch]:
        """Batches of `size`; a last one with a single sample is left out, since batch normalization rejects it."""
        pieces = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        if len(pieces) > 1 and len(pieces[-1]) == 1:
            pieces.pop()
        return [self.take(piece) for piece in pieces]


def samples_of(batches: Sequence[Batch], model: torch.nn.Module) -> Samples | None:
    """None when the batches are not made of samples along the first axis of all their tensors."""
    sizes = [_size(batch) for batch in batches]
    if not sizes or None in sizes or len({_form(batch) for batch in batches}) > 1:
        return None
    if len(set(sizes[:-1])) > 1:  # only a last batch is smaller: sequences of other lengths are not samples
        return None
    whole = _concatenated(batches)
    count = sum(size for size in sizes if size is not None)
    return Samples(whole, count, max(size for size in sizes if size is not None), _labels(whole, count, model))


def _size(batch: Batch) -> int | None:
    tensors = list(tensors_of(batch))
    sizes = {tensor.shape[0] if tensor.ndim else None for tensor in tensors}
    return sizes.pop() if len(sizes) == 1 and tensors else None


def _form(value: Any) -> Any:
    """Structure, dtypes and trailing shapes: equal for batches that can be joined."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape[1:]), value.layout
    if isinstance(value, dict):
        return tuple((str(k), _form(v)) for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *(_form(v) for v in value)
    return type(value).__name__


def _concatenated(batches: Sequence[Batch]) -> Batch:
    leaves = [list(tensors_of(batch)) for batch in batches]
    joined = iter([torch.cat(tensors) for tensors in zip(*leaves, strict=True)])
    return map_structure(lambda leaf: next(joined) if isinstance(leaf, torch.Tensor) else leaf, batches[0])


def _labels(whole: Batch, count: int, model: torch.nn.Module) -> torch.Tensor | None:
    target = split(whole, model)[1]
    if not isinstance(target, torch.Tensor) or target.shape[0] != count or target.numel() != count:
        return None
    target = target.detach().reshape(-1).cpu()
    few = target.is_floating_point() and bool(((target == 0) | (target == 1)).all())
    return target.long() if few or not (target.is_floating_point() or target.is_complex()) else None


@dataclass(frozen=True)
class Splitter:
    """Training and validation batches of a seed.

    `how`: "given" validation data, "held out" (another share of the samples for every seed), "folds", "time-ordered" (the last ones),
    "batches" (whole ones), or "none": there is nothing to validate on.
    """

    how: str
    batches: Sequence[Batch]
    val_batches: Sequence[Batch]
    samples: Samples | None = None
    folds: int = 0

    @property
    def overlap(self) -> float:
        """Validation over training samples where every seed splits the same data afresh, else 0: see `paired_interval`."""
        if self.how not in ("held out", "folds", "batches"):
            return 0.0
        share = 1 / self.folds if self.folds else SHARE
        return share / (1 - share)

    def split(self, seed: int) -> tuple[list[Batch], list[Batch]]:
        if self.samples is None:
            return self._whole_batches(seed)
        training, validation = self._indices(seed)
        return self.samples.batches(training, min(self.samples.size, len(training))), _in_parts(self.samples, validation)

    def _whole_batches(self, seed: int) -> tuple[list[Batch], list[Batch]]:
        if self.how != "batches":
            return list(self.batches), list(self.val_batches)
        order = random.Random(seed).sample(range(len(self.batches)), len(self.batches))
        held = max(1, round(SHARE * len(order)))
        return [self.batches[i] for i in sorted(order[held:])], [self.batches[i] for i in sorted(order[:held])]

    def _indices(self, seed: int) -> tuple[list[int], list[int]]:
        assert self.samples is not None
        everything = list(range(self.samples.count))
        if self.how == "time-ordered":
            first = self.samples.count - max(1, round(SHARE * self.samples.count))
            return everything[:first], everything[first:]
        if self.how == "folds":
            return self._fold(everything, seed)
        from sklearn.model_selection import train_test_split

        parts = train_test_split(everything, test_size=SHARE, random_state=seed, stratify=stratification(self.samples.labels, 2, SHARE))
        return list(parts[0]), list(parts[1])

    def _fold(self, everything: list[int], seed: int) -> tuple[list[int], list[int]]:
        from sklearn.model_selection import KFold, StratifiedKFold

        assert self.samples is not None
        labels = stratification(self.samples.labels, self.folds)
        kind = KFold if labels is None else StratifiedKFold
        parts = kind(self.folds, shuffle=True, random_state=seed // self.folds).split(everything, labels)
        training, validation = list(parts)[seed % self.folds]
        order = random.Random(seed)
        return order.sample(training.tolist(), len(training)), validation.tolist()


def stratification(labels: torch.Tensor | None, fewest: int, share: float | None = None) -> Any:
    """Labels as scikit-learn takes them; None when a class has fewer than `fewest` samples, or there are too many classes."""
    if labels is None:
        return None
    counts = torch.unique(labels, return_counts=True)[1]
    classes, total = len(counts), int(counts.sum())
    if int(counts.min()) < fewest or classes > MOST_CLASSES or (share is not None and share * total < classes):
        return None
    return labels.numpy()


def splitter_of(workload: Workload, *, folds: int = 0, time_ordered: bool = False) -> Splitter:
    """How this workload's data are split. Raises ConfigError for folds or an order that it does not allow."""
    samples = samples_of(workload.batches, workload.model)
    if (folds or time_ordered) and workload.val_batches:
        flag = "folds" if folds else "a time-ordered split"
        raise ConfigError(f"{flag} and validation data exclude each other", hint="leave the validation data out, or the split")
    if workload.val_batches:
        joined = samples_of(workload.val_batches, workload.model)
        parts = _in_parts(joined, list(range(joined.count))) if joined is not None else list(workload.val_batches)
        return Splitter("given", workload.batches, parts)
    if not workload.data_given:
        return Splitter("none", workload.batches, ())
    if samples is None or samples.count < FEWEST:
        if folds or time_ordered:
            raise ConfigError("the data cannot be split into samples", hint="give batches with the samples on the first axis")
        return Splitter("batches" if len(workload.batches) >= FEWEST_BATCHES else "none", workload.batches, ())
    if folds and not 2 <= folds <= samples.count:
        raise ConfigError(f"--folds {folds} does not fit {samples.count} samples", hint="give from 2 folds up to one a sample")
    how = "folds" if folds else "time-ordered" if time_ordered else "held out"
    return Splitter(how, workload.batches, (), samples, folds)


def _in_parts(samples: Samples, chosen: Sequence[int]) -> list[Batch]:
    chosen = random.Random(len(chosen)).sample(list(chosen), MOST) if len(chosen) > MOST else chosen
    size = max(1, min(LARGEST, -(-len(chosen) // PARTS)))
    return [samples.take(chosen[i : i + size]) for i in range(0, len(chosen), size)]
