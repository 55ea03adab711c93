"""Treatments of training batches that are redrawn at every step; what is drawn is in `draws`."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.remedies.definition import RemedyDefinition, Strength, regularizing
from gradcheck.types.data import InputFacts
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.step import apply_loss, as_scalar
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, input_indices, replaced, target_index, tensor_at
from gradcheck.workload.workload import Batch


def flip(index: int, batch: Batch, generator: torch.Generator) -> Batch:
    """Mirrors half of the images [N, C, H, W] left to right."""
    x = tensor_at(batch, index)
    chosen = torch.rand(len(x), generator=generator, device="cpu") < 0.5
    return replaced(batch, {index: torch.where(chosen.to(x.device)[:, None, None, None], x.flip(-1), x)})


def shift(index: int, share: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Moves each image by up to `share` of its height and width; the border is repeated."""
    x = tensor_at(batch, index)
    return replaced(batch, {index: _windows(x, round(share * x.shape[2]), round(share * x.shape[3]), "replicate", generator)})


def crop(index: int, share: float, batch: Batch, generator: torch.Generator) -> Batch:
    """A window of the image's size out of the image with a border of zeros, `share` of its size wide."""
    x = tensor_at(batch, index)
    return replaced(batch, {index: _windows(x, round(share * x.shape[2]), round(share * x.shape[3]), "constant", generator)})


def _windows(x: torch.Tensor, high: int, wide: int, mode: str, generator: torch.Generator) -> torch.Tensor:
    n, height, width = x.shape[0], x.shape[2], x.shape[3]
    padded = F.pad(x, (wide, wide, high, high), mode=mode)
    top = torch.randint(2 * high + 1, (n,), generator=generator, device="cpu")
    left = torch.randint(2 * wide + 1, (n,), generator=generator, device="cpu")
    rows = (top[:, None] + torch.arange(height, device="cpu"))[:, None, :, None].to(x.device)
    columns = (left[:, None] + torch.arange(width, device="cpu"))[:, None, None, :].to(x.device)
    samples = torch.arange(n, device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[samples, channels, rows, columns]


def noise(index: int, scale: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Adds normal noise of `scale` times the standard deviation of each feature over the batch."""
    x = tensor_at(batch, index)
    spread = x.std(0, keepdim=True, correction=0)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
    return replaced(batch, {index: x + scale * spread * noise})


@dataclass(frozen=True)
class Mixed:
    """Two targets of each sample, of which the first counts `share` and the second the rest."""

    first: torch.Tensor
    second: torch.Tensor
    share: float


def mix(index: int, target: int, alpha: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Each sample and a random other one of the batch, in the share that a Beta(alpha, alpha) variable gives for the whole batch."""
    x, y = tensor_at(batch, index), tensor_at(batch, target)
    share, order = _beta(alpha, generator), torch.randperm(len(x), generator=generator, device="cpu").to(x.device)
    mixed = share * x + (1 - share) * x[order]
    other = y[order]
    new: Any = share * y + (1 - share) * other if y.is_floating_point() else Mixed(y, other, share)
    return replaced(batch, {index: mixed, target: new})


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A Beta(alpha, alpha) variable: the ratio of two Gamma variables, from torch's own sampler."""
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64, device="cpu"), generator=generator).tolist()
    return a / (a + b) if a + b > 0 else 1.0


def mixed_loss(loss: Any, output: Any, target: Any) -> torch.Tensor:
    """The user's loss; of both targets where they are mixed."""
    if not isinstance(target, Mixed):
        return as_scalar(apply_loss(loss, output, target))
    first, second = (as_scalar(apply_loss(loss, output, t)) for t in (target.first, target.second))
    return target.share * first + (1 - target.share) * second


def drop_tokens(index: int, rate: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Replaces some tokens of [N, T] by others of the batch: their frequencies stay what they are, and no mask token is needed."""
    x = tensor_at(batch, index)
    others = x.reshape(-1)[torch.randint(x.numel(), (x.numel(),), generator=generator, device="cpu").to(x.device)].reshape(x.shape)
    return replaced(batch, {index: torch.where(torch.rand(x.shape, generator=generator, device="cpu").to(x.device) < rate, others, x)})


SHIFT, CROP, NOISE, ALPHA, TOKENS = 0.1, 0.125, 0.1, 0.2, 0.1


def _floating(m: Measurement) -> list[InputFacts]:
    return [x for x in m.data.inputs if x.dtype.startswith(("float", "bfloat"))]


def _images(m: Measurement) -> list[InputFacts]:
    return [x for x in _floating(m) if len(x.shape) == 4 and min(x.shape[2:]) >= 4]


def _one_input(treated: TreatedWorkload, p: Fix) -> int:
    name = str(p.settings.get("input", ""))
    found = input_indices(treated.workload.batches[0], treated.model, [name] if name else [])
    if not found:
        raise Inapplicable("the batches have no floating-point input")
    return found[0]


def _one_image(treated: TreatedWorkload, p: Fix) -> int:
    index = _one_input(treated, p)
    if tensor_at(treated.workload.batches[0], index).dim() != 4:
        raise Inapplicable("the input is not a batch of images")
    return index


def _proposed(treatment: RemedyDefinition, finding: Finding | None, inputs: Sequence[InputFacts], **settings: Setting) -> list[Fix]:
    """For the first of the inputs; nothing without any."""
    return [treatment.with_settings(finding, **settings, input=x.name) for x in inputs[:1]]


@regularizing(
    "random-flip",
    "random flips",
    "Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural Networks",
    wording="mirror half of the images left to right",
)
def random_flip(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(random_flip, finding, _images(m))


random_flip.applies(lambda t, p: t.augmentations.append(functools.partial(flip, _one_image(t, p))))


@regularizing(
    "random-shift",
    "random shifts",
    "Simard et al. 2003, Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis",
    strengths=(Strength("share", SHIFT, 0.02, 0.3, log=False),),
    wording="shift the images by up to {share:.0%} of their size",
)
def random_shift(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(random_shift, finding, _images(m), share=SHIFT)


random_shift.applies(lambda t, p: t.augmentations.append(functools.partial(shift, _one_image(t, p), float(p.settings["share"]))))


@regularizing(
    "random-crop",
    "random crops",
    "He et al. 2016, Deep Residual Learning for Image Recognition, section 4.2",
    strengths=(Strength("share", CROP, 0.02, 0.3, log=False),),
    wording="crop the images at random, after a border of zeros of {share:.1%} of their size",
)
def random_crop(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(random_crop, finding, _images(m), share=CROP)


random_crop.applies(lambda t, p: t.augmentations.append(functools.partial(crop, _one_image(t, p), float(p.settings["share"]))))


@regularizing(
    "input-noise",
    "noise on the inputs",
    "Bishop 1995, Training with Noise is Equivalent to Tikhonov Regularization",
    strengths=(Strength("scale", NOISE, 0.01, 1.0),),
    wording="add normal noise of {scale:.2g} standard deviations of each feature to the inputs",
)
def input_noise(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(input_noise, finding, _floating(m), scale=NOISE)


input_noise.applies(lambda t, p: t.augmentations.append(functools.partial(noise, _one_input(t, p), float(p.settings["scale"]))))


@regularizing(
    "mixup",
    "mixup",
    "Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization",
    strengths=(Strength("alpha", ALPHA, 0.05, 2.0),),
    wording="mix pairs of samples and of their losses, in shares drawn from Beta({alpha:.2g}, {alpha:.2g})",
)
def mixup(finding: Finding | None, m: Measurement) -> list[Fix]:
    known = any(c.target_kind in ("classes", "values", "probabilities") for c in m.losses)
    return _proposed(mixup, finding, _floating(m) if known else [], alpha=ALPHA)


@mixup.applies
def apply_mixup(treated: TreatedWorkload, p: Fix) -> None:
    batch = treated.workload.batches[0]
    index, target = _one_input(treated, p), target_index(batch, treated.model)
    if target is None:
        raise Inapplicable("the target is not a tensor of the batch")
    if not tensor_at(batch, target).is_floating_point():
        loss = treated.workload.loss
        if loss is None:
            raise Inapplicable("the training step computes its loss itself, of one label for each sample")
        treated.replace_loss(functools.partial(mixed_loss, loss))
    treated.augmentations.append(functools.partial(mix, index, target, float(p.settings["alpha"])))


@regularizing(
    "token-dropout",
    "dropped tokens",
    "Xie et al. 2017, Data Noising as Smoothing in Neural Network Language Models",
    strengths=(Strength("rate", TOKENS, 0.01, 0.5),),
    wording="replace {rate:.0%} of the input tokens by random ones of the batch",
)
def token_dropout(finding: Finding | None, m: Measurement) -> list[Fix]:
    tokens = [x for x in m.data.inputs if x.dtype in ("int64", "int32") and len(x.shape) == 2 and x.used_by == "embedding"]
    return _proposed(token_dropout, finding, tokens, rate=TOKENS)


@token_dropout.applies
def drop_some_tokens(treated: TreatedWorkload, p: Fix) -> None:
    batch = treated.workload.batches[0]
    target = target_index(batch, treated.model)
    found = [i for i, t in enumerate(tensors_of(batch)) if i != target and t.dim() == 2 and t.dtype in (torch.int64, torch.int32)]
    if not found:
        raise Inapplicable("the batches have no tokens [samples, length]")
    treated.augmentations.append(functools.partial(drop_tokens, found[0], float(p.settings["rate"])))


REMEDIES = (random_flip, random_shift, random_crop, input_noise, mixup, token_dropout)
