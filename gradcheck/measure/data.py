"""Facts about the batches: ranges of the inputs, spread of the labels."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import torch

from gradcheck.measure import duplicates
from gradcheck.types.data import DataFacts, InputFacts, LabelFacts
from gradcheck.types.layers import LayerKind
from gradcheck.workload.tensors import batch_size, named_tensors
from gradcheck.workload.transfers import on_host

MOST_FEATURES = 100_000
MOST_MOMENTS = 64  # features whose moments are kept


def data_facts(
    batches: Sequence[Any],
    *,
    given: bool,
    steps: int,
    targets: Sequence[torch.Tensor],
    classes: int | None,
    ignore_index: int,
    first: LayerKind | None,
    inputs: Collection[str] | None = None,
    one_pass: bool = True,
) -> DataFacts:
    """`targets`: the target tensor of each batch, where it is known; they are not inputs. `first`: kind of the first layer.

    `inputs`: names of the tensors that are data, where that is known. `one_pass`: each sample of the data is there once at most.
    """
    skipped = {id(t) for t in targets} if inputs is None else set()
    columns: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for name, tensor in named_tensors(batch):
            if id(tensor) not in skipped and (inputs is None or name in inputs):
                columns.setdefault(name, []).append(tensor)
    present = {name: tensors for name, tensors in columns.items() if tensors[0].numel()}
    whole = sum(t[0].dim() > 1 and t[0][0].numel() > 1 for t in present.values()) == 1  # a sample is one input's row
    facts = tuple(duplicates.facts(_input(n, t, first), t, targets, whole and one_pass) for n, t in present.items())
    labels = _labels(targets, classes, ignore_index)
    size = batch_size(batches[0]) if batches else 0
    return DataFacts(given, len(batches), size, facts, labels, repeated=len(batches) < steps)


@torch.no_grad()
def _input(name: str, tensors: list[torch.Tensor], first: LayerKind | None) -> InputFacts:
    shape, dtype = tuple(tensors[0].shape), str(tensors[0].dtype).removeprefix("torch.")
    if tensors[0].is_complex():
        tensors = [torch.view_as_real(t) for t in tensors]
    tensors = on_host(tensors)
    if not tensors[0].is_floating_point():
        whole = torch.cat([t.reshape(-1) for t in tensors])
        return InputFacts(name, shape, dtype, min=float(whole.min().item()), max=float(whole.max().item()), used_by=first)
    bad, place = 0, None
    for b, t in enumerate(tensors):
        wrong = ~torch.isfinite(t)
        count = int(wrong.sum().item())
        if count and place is None:
            place = (b, *wrong.nonzero()[0].tolist())
        bad += count
    flat = torch.cat([t.detach().float().reshape(-1) for t in tensors])
    flat = flat[torch.isfinite(flat)] if bad else flat
    if not flat.numel():
        return InputFacts(name, shape, dtype, non_finite=bad, first_non_finite=place, used_by=first)
    low, high = torch.aminmax(flat)
    ratio, constant = _features(tensors)
    return InputFacts(
        name,
        shape,
        dtype,
        mean=flat.double().mean().item(),
        std=flat.double().std(correction=0).item(),
        min=low.item(),
        max=high.item(),
        feature_std_ratio=ratio,
        non_finite=bad,
        first_non_finite=place,
        constant_features=constant,
        used_by=first,
        moments=_moments(tensors),
    )


def _moments(tensors: list[torch.Tensor]) -> tuple[tuple[float, float], ...]:
    """Mean and standard deviation of finite entries along axis 1, of tables and images; what never varies has std 0."""
    width = tensors[0].shape[1] if tensors[0].dim() in (2, 4, 5) else 0
    if not 0 < width <= MOST_MOMENTS or any(t.dim() != tensors[0].dim() or t.shape[1] != width for t in tensors):
        return ()
    columns = torch.cat([t.detach().double().movedim(1, -1).reshape(-1, width) for t in tensors]).T
    finite = [c[torch.isfinite(c)] for c in columns]
    return tuple((c.mean().item(), c.std(correction=0).item()) for c in finite) if all(len(c) for c in finite) else ()


def _features(tensors: list[torch.Tensor]) -> tuple[float | None, int]:
    """Over columns of 2-D inputs: ratio of the largest to the smallest spread, constant columns."""
    if tensors[0].dim() != 2 or tensors[0].shape[1] > MOST_FEATURES or any(t.shape[1:] != tensors[0].shape[1:] for t in tensors):
        return None, 0
    x = torch.cat([t.detach().double() for t in tensors])
    if x.shape[0] < 8 or not torch.isfinite(x).all():
        return None, 0
    std = x.std(0, correction=0)
    varies = std > 1e-12 * x.abs().amax(0).clamp_min(1e-300)
    if not bool(varies.any()):
        return None, x.shape[1]
    spread = std[varies]
    return (spread.max() / spread.min()).item(), int((~varies).sum().item())


@torch.no_grad()
def _labels(targets: Sequence[torch.Tensor], classes: int | None, ignore_index: int) -> LabelFacts | None:
    if not targets or classes is None or any(t.is_floating_point() for t in targets):
        return None
    flat = [t.reshape(-1).long() for t in on_host(targets)]
    ignored = sum(int((t == ignore_index).sum().item()) for t in flat)
    flat = [t[t != ignore_index] for t in flat]
    joined = torch.cat(flat)
    if not joined.numel():
        return None
    low, high = int(joined.min().item()), int(joined.max().item())
    inside = joined[(joined >= 0) & (joined < max(classes, 1))]
    counts = torch.bincount(inside, minlength=classes).tolist() if classes <= 100_000 else []
    per_batch = tuple(len(t.unique()) for t in flat)
    ends = [(int(t[0]), int(t[-1])) for t in flat if t.numel()]
    ordered = all(bool((t[1:] >= t[:-1]).all()) for t in flat) and all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
    return LabelFacts(classes, tuple(counts), per_batch, low, high, ordered and high > low and len(flat) > 1, ignored)
