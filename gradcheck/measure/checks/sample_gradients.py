"""Gradients of single samples, and of small groups of them: outliers, and the noise scale."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from gradcheck.errors import TargetError
from gradcheck.measure.checks.by_weights import copies, gradients, norm
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.types.checks import SampleGradients
from gradcheck.workload.device import wide
from gradcheck.workload.dtensor import local
from gradcheck.workload.lockstep import everyone
from gradcheck.workload.tensors import batch_size, named_tensors
from gradcheck.workload.training_copy import TrainingCopy, is_divisible

SINGLES = 8
EXTREME = 3  # of them: with the largest inputs or targets of the batch
DRAWS = 8  # groups of samples; fewer give no interval
KEPT = 1_000_000  # evenly spaced gradient entries on which groups are compared
PIECES = 4  # a group is at most this part of a batch: eight of them cost two training steps
INDIVISIBLE = "the training step does not run on a part of a batch"
AGREE = 1e-2  # relative: the loss of a batch has to be the mean, or the sum, of its samples' losses


def sample_gradients(context: CheckContext) -> SampleGradients | None:
    """Norms of single samples' gradients at the start, and the noise scale from groups of samples at the weights that the probe left.

    In evaluation mode, so that samples are independent of each other. None when the probe left no finite weights. Raises
    Unmeasured when batches cannot be cut into samples, or their loss is not a mean over samples.
    """
    batches, whole = (context.compared or context.workload).batches, context.workload.uncut or context.workload
    size = sample_count(whole.batches[0])
    if context.probe.ended in ("non-finite", "raised") or size < 4:
        return None
    if not is_divisible(context.workload):
        raise Unmeasured(INDIVISIBLE)
    copy, kept = context.fork(), picked(batches[0], SINGLES)
    some = part(batches[0], kept)
    everything = True
    try:
        with deterministic(copy.model, everything=True):
            norms = single_norms(copy, some, len(kept))
    except (RuntimeError, ValueError, TypeError, TargetError):  # a model that behaves differently in evaluation mode
        everything = False
        with deterministic(copy.model, everything=False):
            norms = single_norms(copy, some, len(kept))
    single = SampleGradients(norms, size, largest=int(kept[norms.index(max(norms))]))
    groups = groups_of(batches, DRAWS)
    if context.late or not groups:
        return single
    late = context.trained.model.state_dict()
    if context.workload.borrowed is not None:  # both use the same model
        late = {name: value.to("cpu", copy=True) for name, value in late.items()}
    copy.model.load_state_dict(late)
    with deterministic(copy.model, everything=everything):
        noise = noise_scale(*gram_of(copy, groups))
    if noise is None:
        return single
    scale, low, high = noise
    return replace(single, noise_scale=scale, noise_low=low, noise_high=high, draws=len(groups))


def sample_count(batch: Any) -> int:
    """Samples of a batch. Raises Unmeasured when its tensors do not agree on their number."""
    tensors = [t for _, t in named_tensors(batch) if t.dim()]
    sizes = {t.shape[0] for t in tensors}
    if len(sizes) != 1:
        raise Unmeasured("the batch cannot be cut into samples: the first axes of its tensors differ")
    return sizes.pop()


def part(value: Any, keep: slice | torch.Tensor) -> Any:
    """Some samples of a batch whose tensors all have one entry a sample on their first axis."""
    if isinstance(value, torch.Tensor):
        return value[keep if isinstance(keep, slice) else keep.to(value.device)] if value.dim() else value
    if isinstance(value, Mapping):
        return {k: part(v, keep) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(part(v, keep) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(part(v, keep) for v in value)
    return value


def picked(batch: Any, count: int) -> torch.Tensor:
    """Indices of samples to look at: those whose inputs or targets are largest, and the first ones of the others."""
    size = sample_count(batch)
    score = torch.zeros(size, device="cpu")
    for _, t in named_tensors(batch):
        if t.dim() and t.is_floating_point():
            norms = t.detach().float().reshape(size, -1).norm(dim=1).cpu()
            score = torch.maximum(score, torch.nan_to_num(norms / norms.median().clamp_min(1e-12)))
    order = score.argsort(descending=True, stable=True)
    extreme = order[: min(EXTREME, size)]
    others = [i for i in range(size) if i not in set(extreme.tolist())]
    return torch.cat([extreme, torch.tensor(others[: max(0, count - len(extreme))], dtype=torch.long, device="cpu")])


@contextmanager
def deterministic(model: nn.Module, *, everything: bool) -> Iterator[None]:
    """Dropout off. With `everything` the whole model is in evaluation mode; else normalization keeps its training mode."""
    kinds = nn.Module if everything else _DropoutNd
    stopped = [m for m in model.modules() if m.training and isinstance(m, kinds)]
    for m in stopped:
        m.training = False
    # Recurrent and attention layers drop on their own.
    inner = [(m, name, getattr(m, name, None)) for m in model.modules() for name in ("dropout", "dropout_p", "attention_dropout")]
    inner = [(m, name, p) for m, name, p in inner if isinstance(p, float) and p > 0]
    for m, name, _ in inner:
        setattr(m, name, 0.0)
    try:
        yield
    finally:
        for m, name, p in inner:
            setattr(m, name, p)
        for m in stopped:
            m.training = True


def gradient(copy: TrainingCopy, batch: Any) -> tuple[float, list[torch.Tensor]]:
    """The loss of a batch and its gradient by parameter; zeros for those that it does not reach. Raises Unmeasured when one is sparse."""
    parameters = trained(copy)
    loss = copy.loss(batch)
    found = gradients(loss, parameters)
    if any(g is not None and g.layout != torch.strided for g in found):
        raise Unmeasured("some gradients are sparse")
    return float(loss.detach()), [torch.zeros_like(local(p)) if g is None else g for p, g in zip(parameters, found, strict=True)]


def trained(copy: TrainingCopy) -> list[torch.Tensor]:
    """The parameters that gradients are taken by."""
    return [p for p in copy.model.parameters() if p.requires_grad]


def single_norms(copy: TrainingCopy, batch: Any, count: int) -> tuple[float, ...]:
    """2-norms of the gradients of the samples of a batch. Raises Unmeasured when their losses do not make up the batch's."""
    losses, norms = [], []
    for i in range(count):
        loss, found = gradient(copy, part(batch, slice(i, i + 1)))
        losses.append(loss)
        norms.append(norm(found, trained(copy)))
    with torch.no_grad():
        together = float(copy.loss(batch))
    mean = sum(losses) / count
    scale = max(abs(x) for x in losses)
    if not math.isfinite(mean) or min(abs(together - mean), abs(together / count - mean)) > AGREE * max(scale, 1e-12):
        raise Unmeasured("the loss of a batch is neither the mean nor the sum of its samples' losses")
    return tuple(norms)


def groups_of(batches: Sequence[Any], draws: int) -> list[Any]:
    """`draws` groups of equal size, none of which share a sample; from as many batches as there are. [] when they are too small."""
    pieces = max(PIECES, -(-draws // len(batches)))
    size = min(sample_count(b) for b in batches) // pieces
    if size < 2:
        return []
    cuts = [part(b, slice(k * size, (k + 1) * size)) for k in range(pieces) for b in batches]
    return cuts[:draws]


def gram_of(copy: TrainingCopy, groups: Sequence[Any]) -> tuple[torch.Tensor, int]:
    """Inner products [n, n] of the groups' gradients, on evenly spaced entries, and the samples in a group."""
    parameters = trained(copy)
    stride = max(1, sum(p.numel() for p in parameters) // KEPT)
    shares = copies(parameters)
    matrix = torch.stack([_entries(gradient(copy, group)[1], shares, stride) for group in groups])
    return torch.stack(everyone(matrix @ matrix.T)).sum(0), batch_size(groups[0])


def _entries(found: Sequence[torch.Tensor], shares: Sequence[float], stride: int) -> torch.Tensor:
    """One in `stride` of the gradients' entries, as if they were one tensor [entries]; in float64 where the device has it.

    `shares`: processes that each of them lies in; the squares of an entry add up to its own over these.
    """
    entries, passed = [], 0
    for g, share in zip(found, shares, strict=True):
        kept = wide(g.reshape(-1)[-passed % stride :: stride])
        entries.append(kept if share == 1 else kept / share**0.5)
        passed += g.numel()
    return torch.cat(entries)


def noise_scale(gram: torch.Tensor, size: int) -> tuple[float, float, float] | None:
    """Noise scale in samples, and an interval of two jackknife standard errors; None when the signal drowns in the noise.

    McCandlish et al. 2018, appendix A.1, for n groups of `size` samples: the mean inner product of different groups is
    unbiased for |G|^2, and size * (mean squared norm - that) for the trace of the covariance of a sample's gradient.
    """
    n = len(gram)
    if n < 3 or not bool(torch.isfinite(gram).all()):
        return None
    signal, noise = _signal_and_noise(gram, size)
    left_out = [_signal_and_noise(gram[keep][:, keep], size)[0] for keep in ([j for j in range(n) if j != i] for i in range(n))]
    middle = sum(left_out) / n
    error = math.sqrt((n - 1) / n * sum((x - middle) ** 2 for x in left_out))
    if signal <= 0 or noise <= 0:
        return None
    high = noise / (signal - 2 * error) if signal > 2 * error else math.inf
    return noise / signal, noise / (signal + 2 * error), high


def _signal_and_noise(gram: torch.Tensor, size: int) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and of the trace of the covariance of one sample's gradient."""
    n = len(gram)
    own = float(gram.diagonal().mean())
    signal = (float(gram.sum()) - n * own) / (n * (n - 1))
    return signal, size * (own - signal)
