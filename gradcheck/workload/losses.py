"""Loss functions by name, and losses that are inferred from an output and a target."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from gradcheck.errors import TargetError, closest

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "binary_cross_entropy": F.binary_cross_entropy,
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "kl_div": F.kl_div,
    "poisson_nll_loss": F.poisson_nll_loss,
    "soft_margin_loss": F.soft_margin_loss,
    "multi_margin_loss": F.multi_margin_loss,
    "multilabel_margin_loss": F.multilabel_margin_loss,
    "multilabel_soft_margin_loss": F.multilabel_soft_margin_loss,
    "hinge_embedding_loss": F.hinge_embedding_loss,
}
_ALIASES = {
    "crossentropy": "cross_entropy",
    "ce": "cross_entropy",
    "nll": "nll_loss",
    "mse": "mse_loss",
    "l1": "l1_loss",
    "mae": "l1_loss",
    "huber": "huber_loss",
    "smooth_l1": "smooth_l1_loss",
    "bce": "binary_cross_entropy",
    "bce_loss": "binary_cross_entropy",
    "bce_with_logits": "binary_cross_entropy_with_logits",
    "bce_with_logits_loss": "binary_cross_entropy_with_logits",
    "kl_div_loss": "kl_div",
}


def loss_by_name(name: str) -> Callable[..., torch.Tensor]:
    """A function of torch.nn.functional: "cross_entropy", also "CrossEntropyLoss", "mse". Raises TargetError for other names."""
    key = name.strip().replace("-", "_")
    for candidate in (key.lower(), _snake(key)):
        candidate = candidate if candidate in LOSSES else _ALIASES.get(candidate, candidate.removesuffix("_loss"))
        candidate = _ALIASES.get(candidate, candidate)
        if candidate in LOSSES:
            return LOSSES[candidate]
    near = closest(key, [*LOSSES, *_ALIASES])
    suggestion = f"did you mean {near!r}? " if near else ""
    raise TargetError(
        f"unknown loss {name!r}", hint=f"{suggestion}choose one of {', '.join(LOSSES)}, or name your own: --loss FILE.py:function"
    )


def _snake(name: str) -> str:
    """ "BCEWithLogitsLoss" -> "bce_with_logits_loss"."""
    text = ""
    for index, letter in enumerate(name):
        starts_word = letter.isupper() and index > 0 and (not name[index - 1].isupper() or name[index + 1 : index + 2].islower())
        text += ("_" if starts_word and not text.endswith("_") else "") + letter.lower()
    return text


# Inferred losses. They call torch's functional losses, which measuring watches.


def cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Class scores [N, C, ...] against labels [N, ...], [N, 1] or class probabilities [N, C, ...]."""
    return F.cross_entropy(output, _labels(output, target))


def cross_entropy_last(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Class scores [..., C] against labels [...], -100 left out."""
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), target.reshape(-1).long())


def negative_log_likelihood(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [N, C, ...] against labels [N, ...] or [N, 1]."""
    return F.nll_loss(output, _labels(output, target))


def negative_log_likelihood_last(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [..., C] against labels [...], -100 left out."""
    return F.nll_loss(output.reshape(-1, output.shape[-1]), target.reshape(-1).long())


def negative_log_probability(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probabilities [N, C, ...] against labels [N, ...] or [N, 1]."""
    return F.nll_loss(output.clamp_min(_tiny(output)).log(), _labels(output, target))


def negative_log_probability_last(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probabilities [..., C] against labels [...], -100 left out."""
    return F.nll_loss(output.reshape(-1, output.shape[-1]).clamp_min(_tiny(output)).log(), target.reshape(-1).long())


def binary_cross_entropy_with_logits(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scores against zeros and ones, as many of them; shapes may differ by axes of one."""
    return F.binary_cross_entropy_with_logits(output, target.to(output.dtype).reshape(output.shape))


def binary_cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probabilities against zeros and ones, as many of them; shapes may differ by axes of one."""
    return F.binary_cross_entropy(output, target.to(output.dtype).reshape(output.shape))


def mean_squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Values against as many values; reshaped first, so that nothing is broadcast."""
    return F.mse_loss(output, target.to(output.dtype).reshape(output.shape))


def mean_squared_magnitude(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Complex values against complex values of the same shape."""
    return F.mse_loss(torch.view_as_real(output), torch.view_as_real(target))


def _labels(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if target.is_floating_point():
        return target
    return (target.squeeze(-1) if target.ndim == output.ndim and target.shape[-1] == 1 else target).long()


def _tiny(output: torch.Tensor) -> Any:
    return torch.finfo(output.dtype).tiny
