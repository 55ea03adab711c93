"""Treatments of training batches that are redrawn at every step; what is drawn is in `draws`."""

import functools
from collections.abc import Sequence

import torch

from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.remedies.regularization.augment_ops import crop, drop_tokens, flip, mix, mixed_loss, noise, shift
from gradcheck.types.data import InputFacts
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.batch_tensors import input_indices, target_index, tensor_at
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.treated import Augment, Inapplicable, TreatedWorkload

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
