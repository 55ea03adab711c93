"""Facts about the batches: ranges of the inputs, spread of the labels."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from gradcheck.types.data import DataFacts, InputFacts, LabelFacts, Turned
from gradcheck.types.layers import LayerKind
from gradcheck.workload.device import on_host
from gradcheck.workload.tensors import batch_size, named_tensors

MOST_ENTRIES = 1 << 22  # of an input that is looked at
FEWEST_SAMPLES = 16
FEWEST_OFF_MODE = 8  # samples in which a feature differs from its median: rarer ones agree by chance
CLOSE = 1e-6  # in standard deviations; of float32 data


@torch.no_grad()
def duplicate_facts(found: InputFacts, tensors: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], whole: bool) -> InputFacts:
    """The facts of an input [samples, ...] with its duplicates, where it is floating, finite and not too large.

    `targets`: the class labels of each batch, if there are any. `whole`: a sample is this input, and nothing else.
    """
    if not _comparable(tensors) or found.non_finite:
        return found
    tensors, targets = _first_time(tensors, targets)
    x = torch.cat([t.double().flatten(1) for t in on_host(tensors)])
    if len(x) < FEWEST_SAMPLES or x.shape[1] < 2:
        return found
    labels = torch.cat([t.reshape(-1) for t in on_host(targets)]) if targets else None
    labels = labels if labels is not None and len(labels) == len(x) and not labels.is_floating_point() else None
    same, conflicting = samples(x, labels)
    found = replace(found, duplicate_features=features(x) if tensors[0].dim() == 2 else 0)
    return replace(found, duplicate_samples=same, conflicting_samples=conflicting, samples=len(x)) if whole else found


def _first_time(tensors: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The batches without repeated ones: loops may take several steps on a batch, as those of a critic do."""
    labelled = len(targets) == len(tensors)
    batches = list(zip(tensors, targets, strict=True)) if labelled else [(t,) for t in tensors]
    new: list[tuple[torch.Tensor, ...]] = []
    for batch in batches:
        if not any(_equal(batch, other) for other in new):
            new.append(batch)
    return [b[0] for b in new], [b[1] for b in new] if labelled else list(targets)


def _equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return torch.equal(one[0][:1], other[0][:1]) and all(torch.equal(a, b) for a, b in pairs)


def _comparable(tensors: Sequence[torch.Tensor]) -> bool:
    first = tensors[0]
    if not first.is_floating_point() or first.dim() < 2 or any(t.shape[1:] != first.shape[1:] for t in tensors):
        return False
    return sum(t.numel() for t in tensors) <= MOST_ENTRIES


def features(x: torch.Tensor) -> int:
    """x: [n, d] -> how many columns are a scaled and shifted copy of a column before them in some order."""
    varied = ((x - x.median(0).values).abs() > 0).sum(0) >= FEWEST_OFF_MODE
    x = x[:, varied]
    z = x - x.mean(0)
    spread = z.square().mean(0).sqrt()
    z = (z / spread)[:, spread > 1e-12 * x.abs().amax(0)] if x.shape[1] else z
    if z.shape[1] < 2:
        return 0
    z = z * torch.where(z.gather(0, z.abs().argmax(0)[None]) < 0, -1.0, 1.0)  # an inverted copy is a copy
    columns = z.T
    order = (columns @ _direction(columns)).argsort()
    one, other = columns[order[:-1]], columns[order[1:]]
    return int(((one - other).abs().amax(1) <= CLOSE).sum())


def samples(x: torch.Tensor, labels: torch.Tensor | None) -> tuple[int, int]:
    """x: [n, d], labels: [n] or None -> how many rows equal one before them in some order; how many of these have another label."""
    order = (x @ _direction(x)).argsort(stable=True)
    same = (x[order[:-1]] == x[order[1:]]).all(1)
    if labels is None:
        return int(same.sum()), 0
    return int(same.sum()), int((same & (labels[order[:-1]] != labels[order[1:]])).sum())


def _direction(rows: torch.Tensor) -> torch.Tensor:
    """A random vector: equal rows have equal products with it, and come to lie side by side when sorted by them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows.shape[1], generator=generator, dtype=rows.dtype, device="cpu")


MOST_FEATURES = 100_000
MOST_MOMENTS = 64  # features whose moments are kept
MOST_TURNED, FEWEST_TURNED = 512, 32  # images whose maps are mirrored
FOLLOWS, MOSTLY = 0.5, 0.8  # correlation of a map with its image, mirrored or not, that so many of the samples have
CLEARLY = 0.3  # by which one of the two correlations is the larger


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
                column = columns.setdefault(name, [])
                if not column or column[0].dim() == tensor.dim():  # of another rank: another input, of a step that takes others
                    column.append(tensor)
    present = {name: tensors for name, tensors in columns.items() if tensors[0].numel()}
    whole = sum(t[0].dim() > 1 and t[0][0].numel() > 1 for t in present.values()) == 1  # a sample is one input's row
    facts = tuple(duplicate_facts(_input(n, t, first), t, targets, whole and one_pass) for n, t in present.items())
    labels = _labels(targets, classes, ignore_index)
    size = batch_size(batches[0]) if batches else 0
    turned = _turned(next(iter(present.values())), targets) if len(present) == 1 else None
    return DataFacts(given, len(batches), size, facts, labels, len(batches) < steps, turned)


@torch.no_grad()
def _turned(images: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]) -> Turned | None:
    """Images [N, C, H, W] against maps [N, H, W] or [N, 1, H, W]; None where maps do not follow the brightness of their images."""
    pairs = [(x, y) for x, y in zip(images, maps, strict=False) if x.dim() == 4 and y.shape[-2:] == x.shape[-2:]]
    pairs = [(x, y) for x, y in pairs if y.numel() == x.numel() // x.shape[1] and min(x.shape[-2:]) > 1]
    if not pairs or any(x.shape[1:] != pairs[0][0].shape[1:] for x, _ in pairs):
        return None
    x, y = (torch.cat(on_host([p[i][:MOST_TURNED] for p in pairs]))[:MOST_TURNED].float() for i in (0, 1))
    one, other = x.mean(1), y.reshape(len(y), *y.shape[-2:])
    varied = (one.flatten(1).std(1) > 0) & (other.flatten(1).std(1) > 0)
    one, other = one[varied], other[varied]
    if len(one) < FEWEST_TURNED:
        return None
    found = []
    for axis, how in ((-1, "left to right"), (-2, "top to bottom")):
        straight, turned = _alike(one, other), _alike(one, other.flip(axis))
        sign = 1 if float((straight + turned).mean()) >= 0 else -1
        straight, turned = sign * straight, sign * turned
        if float((torch.maximum(straight, turned) >= FOLLOWS).float().mean()) >= MOSTLY:
            shares = [float((a > b + CLEARLY).float().mean()) for a, b in ((straight, turned), (turned, straight))]
            found.append(Turned(len(one), shares[0], shares[1], how))
    return max(found, key=lambda t: t.mirrored, default=None)


def _alike(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Correlation of two maps, of each sample [N]."""
    a, b = (t.flatten(1) - t.flatten(1).mean(1, keepdim=True) for t in (one, other))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)


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
