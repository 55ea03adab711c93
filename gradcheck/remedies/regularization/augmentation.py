"""Treatments of training batches that are redrawn at every step; what is drawn is in `draws`."""

import ast
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.remedies.data.write_batches import training_loader
from gradcheck.remedies.definition import RemedyDefinition, Strength, regularizing
from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import argument, calls_in, defined, set_argument
from gradcheck.remedies.editing.statements import insert_before, insert_definition
from gradcheck.remedies.modules.user_code import require_target
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


def move(border: str, index: int, share: float, batch: Batch, generator: torch.Generator) -> Batch:
    """A window of each image's size, anywhere in the image with a border that is `share` of its size wide. `border`: a mode of F.pad."""
    x = tensor_at(batch, index)
    n, channels, height, width = x.shape
    high, wide = round(share * height), round(share * width)
    padded = F.pad(x, (wide, wide, high, high), mode=border)
    top = torch.randint(2 * high + 1, (n,), generator=generator, device="cpu")
    left = torch.randint(2 * wide + 1, (n,), generator=generator, device="cpu")
    rows = (top[:, None] + torch.arange(height, device="cpu"))[:, None, :, None].to(x.device)
    columns = (left[:, None] + torch.arange(width, device="cpu"))[:, None, None, :].to(x.device)
    sample, channel = torch.arange(n, device=x.device)[:, None, None, None], torch.arange(channels, device=x.device)[None, :, None, None]
    return replaced(batch, {index: padded[sample, channel, rows, columns]})


shift = functools.partial(move, "replicate")  # what leaves the image is filled up with its edge,
crop = functools.partial(move, "constant")  # or with zeros


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
    index, target = _one_input(treated, p), require_target(treated)
    if not tensor_at(treated.workload.batches[0], target).is_floating_point():
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


NAME = "augmented"  # a collate function of the training loader: it redraws them for every batch
X, Y = "inputs", "targets"

Code = Callable[[Fix, Context, Draft], str]  # statements about `inputs` and `targets`


def _writer(code: Code) -> Writer:
    def write(p: Fix, context: Context) -> None:
        draft, loader = training_loader(context)
        _check(context, draft, loader)
        text = code(p, context, draft)
        function = defined(draft, NAME)
        if function is not None:
            insert_before(draft, function.body[-1], text)
            return
        set_argument(draft, loader, "collate_fn", NAME)
        insert_definition(draft, loader, _function(draft, text))

    return write


def _function(draft: Draft, text: str) -> str:
    collate, tensor = (spelled(draft, f"torch.{x}") for x in ("utils.data.default_collate", "Tensor"))
    body = "".join(f"    {line}\n" for line in text.split("\n"))
    return f'''
def {NAME}(samples: list[tuple[{tensor}, {tensor}]]) -> tuple[{tensor}, {tensor}]:
    """A training batch, with what is redrawn for each."""
    {X}, {Y} = {collate}(samples)
{body}    return {X}, {Y}
'''


def _check(context: Context, draft: Draft, loader: ast.Call) -> None:
    given = argument(loader, "collate_fn")
    if given is not None and draft.source(given) != NAME:
        raise draft.refusal(loader, "the loader has a collate function of its own")
    if argument(loader, "batch_size", 1) is None and argument(loader, "batch_sampler") is None:
        raise draft.refusal(loader, "the loader makes no batches")
    datasets = calls_in(draft.tree, "TensorDataset")
    if any(len(n.args) != 2 for n in datasets) or [x.name for x in context.measurement.data.inputs] != ["0"]:
        raise draft.refusal(loader, "a batch is more than an input and a target")


def _write_flip(p: Fix, context: Context, draft: Draft) -> str:
    rand = spelled(draft, "torch.rand")
    return f"flipped = {rand}(len({X})) < 0.5\n{X}[flipped] = {X}[flipped].flip(-1)"


def _write_windows(mode: str, p: Fix, context: Context, draft: Draft) -> str:
    """A window of the image's size out of the padded image, anywhere."""
    sizes = context.measurement.data.inputs[0].shape[2:]
    if len(sizes) != 2:
        raise Unwritable("the input is not a batch of images")
    high, wide = (round(number(p, "share") * size) for size in sizes)
    if not high or not wide:
        raise Unwritable("the images are too small to be shifted")
    pad, randint, stack = (spelled(draft, f"torch.{x}") for x in ("nn.functional.pad", "randint", "stack"))
    return (
        f"height, width = {X}.shape[-2:]\n"
        f"padded = {pad}({X}, ({wide}, {wide}, {high}, {high}){mode})\n"
        f"corners = zip({randint}({2 * high + 1}, (len({X}),)), {randint}({2 * wide + 1}, (len({X}),)), strict=True)\n"
        f"{X} = {stack}([x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, corners, strict=True)])"
    )


def _write_noise(p: Fix, context: Context, draft: Draft) -> str:
    normal = spelled(draft, "torch.randn_like")
    return f"{X} = {X} + {literal(number(p, 'scale'))} * {X}.std(0, correction=0) * {normal}({X})"


def _write_mixup(p: Fix, context: Context, draft: Draft) -> str:
    if any(c.target_kind != "values" for c in context.measurement.losses):
        raise Unwritable("the targets are class numbers: the loop has to take the loss for both of those that are mixed")
    alpha = literal(number(p, "alpha"))
    beta, order = spelled(draft, "torch.distributions.Beta"), spelled(draft, "torch.randperm")
    mixed = "\n".join(f"{t} = share * {t} + (1 - share) * {t}[order]" for t in (X, Y))
    return f"share, order = {beta}({alpha}, {alpha}).sample(), {order}(len({X}))\n{mixed}"


def _write_tokens(p: Fix, context: Context, draft: Draft) -> str:
    randint, where, rand = (spelled(draft, f"torch.{x}") for x in ("randint", "where", "rand"))
    return (
        f"others = {X}.flatten()[{randint}({X}.numel(), {X}.shape)]\n"
        f"{X} = {where}({rand}({X}.shape) < {literal(number(p, 'rate'))}, others, {X})"
    )


WRITERS: dict[str, Writer] = {
    "random-flip": _writer(_write_flip),
    "random-shift": _writer(functools.partial(_write_windows, ', mode="replicate"')),
    "random-crop": _writer(functools.partial(_write_windows, "")),
    "input-noise": _writer(_write_noise),
    "mixup": _writer(_write_mixup),
    "token-dropout": _writer(_write_tokens),
}
