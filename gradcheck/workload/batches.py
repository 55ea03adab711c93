"""Batches from anything that holds data: one batch, an iterable, a loader, a dataset, a function."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from gradcheck.errors import TargetError
from gradcheck.workload.source_sites import failure
from gradcheck.workload.tensors import map_structure, tensors_of
from gradcheck.workload.workload import Batch

BATCH_SIZE = 32
# Batches beyond the second are not collected when all would take more memory than this.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Data:
    batches: list[Batch]
    source: str  # for people: "`train_loader` in model.py"
    given: bool = True  # False: random numbers
    # The file leaves dtype and trailing axes of targets open, so they may be fitted to the loss.
    loose_targets: bool = False
    collated: bool = False  # stacked by torch from single samples, which are then on the first axis


def collect(source: Any, limit: int, seed: int, where: str, *, samples: bool = False) -> list[Batch]:
    """At most `limit` batches of `source`, numpy arrays made tensors. `where` names it in errors. Raises TargetError.

    With `samples` a list holds single samples, as a dataset does, rather than batches.
    """
    try:
        with _undisturbed(source):
            found = iter(_loader(source, seed, where)) if samples and isinstance(source, list) else _iterate(source, limit, seed, where)
            batches = _bounded(found, limit)
    except (TargetError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise failure(f"{where} cannot be iterated", error, hint="gradcheck takes its batches as a training loop would") from error
    if not batches:
        raise TargetError(f"{where} is empty", hint="it gave no batch; gradcheck needs at least one (does drop_last drop the only one?)")
    for number, batch in enumerate(batches):
        if any(tensor.numel() == 0 and tensor.ndim > 0 and tensor.shape[0] == 0 for tensor in tensors_of(batch)):
            raise TargetError(f"batch {number} of {where} has no samples", hint="give batches with at least one sample")
    return batches


@contextmanager
def _undisturbed(source: Any) -> Iterator[None]:
    """Restores the generators from which a DataLoader draws its order, and ends the workers that it would keep."""
    if not isinstance(source, DataLoader):
        yield
        return
    holders = (source, source.sampler, source.batch_sampler, getattr(source.batch_sampler, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    kept = source._iterator
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        if kept is None and source._iterator is not None:
            source._iterator._shutdown_workers()  # type: ignore[attr-defined]
            source._iterator = None


def _bounded(batches: Iterator[Batch], limit: int) -> list[Batch]:
    kept: list[Batch] = []
    size = 0
    for batch in batches:
        batch = with_tensors(batch)
        kept.append(batch)
        size += sum(tensor.nbytes for tensor in tensors_of(batch))
        if len(kept) >= limit or (len(kept) >= 2 and size * (len(kept) + 1) / len(kept) > _MOST_BYTES):
            break
    return kept


def _iterate(source: Any, limit: int, seed: int, where: str) -> Iterator[Batch]:
    if isinstance(source, DataLoader):
        return iter(source)
    if isinstance(source, IterableDataset):
        return iter(DataLoader(source, batch_size=BATCH_SIZE))
    if _is_dataset(source):
        return iter(_loader(source, seed, where))
    if isinstance(source, (torch.Tensor, np.ndarray, Mapping, tuple)):
        return iter([source])
    if isinstance(source, list):
        return iter([source] if _is_one_batch(source) else source)
    if isinstance(source, Iterable):
        return iter(source)
    if callable(source):
        return _from_function(source, limit, seed, where)
    raise TargetError(f"{where} is a {type(source).__name__}, not data", hint="give a batch, a list of batches, a DataLoader or a Dataset")


def collates(source: Any) -> bool:
    """Whether batches of `source` are single samples that torch stacks."""
    return _is_dataset(source) or (isinstance(source, DataLoader) and source.collate_fn is default_collate)


def _is_dataset(source: Any) -> bool:
    if isinstance(source, (Dataset, torch.Tensor, np.ndarray, Mapping, list, tuple, str)):
        return isinstance(source, Dataset)
    return isinstance(source, Sized) and hasattr(source, "__getitem__") and not hasattr(source, "batch_sampler")


def _is_one_batch(items: list[Any]) -> bool:
    """Whether a list is one collated batch [inputs, target] of unlike tensors, rather than a list of batches."""
    if len(items) < 2 or not all(isinstance(item, (torch.Tensor, np.ndarray)) for item in items):
        return False
    return any(item.dtype != items[0].dtype or item.shape[1:] != items[0].shape[1:] for item in items)


def _loader(dataset: Any, seed: int, where: str) -> DataLoader[Any]:
    if len(dataset) == 0:
        raise TargetError(f"{where} is empty", hint="the dataset has no samples")
    generator = torch.Generator().manual_seed(seed)
    plain = torch.get_default_device().type == "cpu"  # a loader draws with its generator on the default device
    order = _Shuffled(len(dataset), generator)
    generator_ = generator if plain else None
    return DataLoader(dataset, batch_size=BATCH_SIZE, sampler=order, generator=generator_, drop_last=len(dataset) > BATCH_SIZE)


class _Shuffled(Sampler[int]):
    """Another order each time, drawn on the CPU."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.count, generator=self.generator, device="cpu").tolist()

    def __len__(self) -> int:
        return self.count


def _from_function(function: Callable[..., Any], limit: int, seed: int, where: str) -> Iterator[Batch]:
    """A function is called for each batch, unless it returns the same one twice, or something that holds several."""
    arguments = _arguments_of(function, where)
    first = function(*arguments)
    if (
        isinstance(first, (DataLoader, IterableDataset, Iterator))
        or _is_dataset(first)
        or (isinstance(first, list) and not _is_one_batch(first))
    ):
        yield from _iterate(first, limit, seed, where)
        return
    if first is None:
        raise TargetError(f"{where} returns None", hint="return a batch from it")
    yield first
    first = with_tensors(first)
    for number in range(1, limit):
        following = function(*arguments)
        if number == 1 and _same(first, with_tensors(following)):
            return
        yield following


def _arguments_of(function: Callable[..., Any], where: str) -> tuple[Any, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    required = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if required == ["split"]:
        return ("train",)
    if required in (["batch_size"], ["n"]):
        return (BATCH_SIZE,)
    if required:
        raise TargetError(f"{where} needs {', '.join(required)}", hint="give its arguments defaults: gradcheck calls it without any")
    return ()


def _same(one: Any, other: Any) -> bool:
    left, right = list(tensors_of(one)), list(tensors_of(other))
    return len(left) == len(right) and all(
        a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b)) for a, b in zip(left, right, strict=True)
    )


def with_tensors(value: Any) -> Any:
    """The same structure with numpy arrays as tensors; float64 arrays, numpy's default, become torch's default dtype."""

    def convert(item: Any) -> Any:
        if not isinstance(item, np.ndarray) or item.dtype.kind not in "biufc":
            return item
        tensor = torch.from_numpy(np.ascontiguousarray(item))
        return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor

    return map_structure(convert, value)
