"""Treatments of training batches that are redrawn at every step; what is drawn is in `draws`."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.types.data import InputFacts
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.step import apply_loss, as_scalar
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.treated import Augment, Inapplicable, TreatedWorkload, input_indices, replaced, target_index, tensor_at
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


def _add(treated: TreatedWorkload, augment: Augment) -> None:
    treated.augmentations.append(augment)


def _proposed(
    treatment: RemedyDefinition, finding: Finding | None, inputs: Sequence[InputFacts], settings: dict[str, Setting]
) -> list[Fix]:
    """For the first of the inputs; nothing without any."""
    if not inputs:
        return []
    settings = {**settings, "input": inputs[0].name}
    assert treatment.wording is not None
    return [treatment.fix(treatment.wording(settings), finding, settings=settings)]


def _flip_words(_: Settings) -> str:
    return "mirror half of the images left to right"


def propose_flip(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(FLIP, finding, _images(m), {})


def propose_shift(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(MOVE, finding, _images(m), {"share": SHIFT})


def _shift_words(s: Settings) -> str:
    return f"shift the images by up to {float(s['share']):.0%} of their size"


def propose_crop(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(CUT, finding, _images(m), {"share": CROP})


def _crop_words(s: Settings) -> str:
    return f"crop the images at random, after a border of zeros of {float(s['share']):.1%} of their size"


def propose_noise(finding: Finding | None, m: Measurement) -> list[Fix]:
    return _proposed(JITTER, finding, _floating(m), {"scale": NOISE})


def _noise_words(s: Settings) -> str:
    return f"add normal noise of {float(s['scale']):.2g} standard deviations of each feature to the inputs"


def propose_mixup(finding: Finding | None, m: Measurement) -> list[Fix]:
    known = any(c.target_kind in ("classes", "values", "probabilities") for c in m.losses)
    return _proposed(MIXUP, finding, _floating(m) if known else [], {"alpha": ALPHA})


def _mixup_words(s: Settings) -> str:
    return f"mix pairs of samples and of their losses, in shares drawn from Beta({float(s['alpha']):.2g}, {float(s['alpha']):.2g})"


def mixup(treated: TreatedWorkload, p: Fix) -> None:
    batch = treated.workload.batches[0]
    index, target = _one_input(treated, p), target_index(batch, treated.model)
    if target is None:
        raise Inapplicable("the target is not a tensor of the batch")
    if not tensor_at(batch, target).is_floating_point():
        loss = treated.workload.loss
        if loss is None:
            raise Inapplicable("the training step computes its loss itself, of one label for each sample")
        treated.replace_loss(functools.partial(mixed_loss, loss))
    _add(treated, functools.partial(mix, index, target, float(p.settings["alpha"])))


def propose_tokens(finding: Finding | None, m: Measurement) -> list[Fix]:
    tokens = [x for x in m.data.inputs if x.dtype in ("int64", "int32") and len(x.shape) == 2 and x.used_by == "embedding"]
    return _proposed(TOKEN_DROPOUT, finding, tokens, {"rate": TOKENS})


def _token_words(s: Settings) -> str:
    return f"replace {float(s['rate']):.0%} of the input tokens by random ones of the batch"


def drop_some_tokens(treated: TreatedWorkload, p: Fix) -> None:
    batch = treated.workload.batches[0]
    target = target_index(batch, treated.model)
    found = [i for i, t in enumerate(tensors_of(batch)) if i != target and t.dim() == 2 and t.dtype in (torch.int64, torch.int32)]
    if not found:
        raise Inapplicable("the batches have no tokens [samples, length]")
    _add(treated, functools.partial(drop_tokens, found[0], float(p.settings["rate"])))


FLIP = RemedyDefinition(
    "random-flip",
    "random flips",
    "regularization",
    "safe",
    "Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural Networks",
    propose_flip,
    lambda treated, p: _add(treated, functools.partial(flip, _one_image(treated, p))),
    wording=_flip_words,
)
MOVE = RemedyDefinition(
    "random-shift",
    "random shifts",
    "regularization",
    "safe",
    "Simard et al. 2003, Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis",
    propose_shift,
    lambda treated, p: _add(treated, functools.partial(shift, _one_image(treated, p), float(p.settings["share"]))),
    strengths=(Strength("share", SHIFT, 0.02, 0.3, log=False),),
    wording=_shift_words,
)
CUT = RemedyDefinition(
    "random-crop",
    "random crops",
    "regularization",
    "safe",
    "He et al. 2016, Deep Residual Learning for Image Recognition, section 4.2",
    propose_crop,
    lambda treated, p: _add(treated, functools.partial(crop, _one_image(treated, p), float(p.settings["share"]))),
    strengths=(Strength("share", CROP, 0.02, 0.3, log=False),),
    wording=_crop_words,
)
JITTER = RemedyDefinition(
    "input-noise",
    "noise on the inputs",
    "regularization",
    "safe",
    "Bishop 1995, Training with Noise is Equivalent to Tikhonov Regularization",
    propose_noise,
    lambda treated, p: _add(treated, functools.partial(noise, _one_input(treated, p), float(p.settings["scale"]))),
    strengths=(Strength("scale", NOISE, 0.01, 1.0),),
    wording=_noise_words,
)
MIXUP = RemedyDefinition(
    "mixup",
    "mixup",
    "regularization",
    "safe",
    "Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization",
    propose_mixup,
    mixup,
    strengths=(Strength("alpha", ALPHA, 0.05, 2.0),),
    wording=_mixup_words,
)
TOKEN_DROPOUT = RemedyDefinition(
    "token-dropout",
    "dropped tokens",
    "regularization",
    "safe",
    "Xie et al. 2017, Data Noising as Smoothing in Neural Network Language Models",
    propose_tokens,
    drop_some_tokens,
    strengths=(Strength("rate", TOKENS, 0.01, 0.5),),
    wording=_token_words,
)

REMEDIES = (FLIP, MOVE, CUT, JITTER, MIXUP, TOKEN_DROPOUT)
