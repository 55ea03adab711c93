"""Attention of a live pass: the largest logit and the entropy of each head, from a few queries, without waiting for a device."""

import functools
import inspect
import math
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.measure.checks.attention import FEWEST_KEYS, MASKED, logits, some_rows

GROUPS = 4  # samples
_SOFTMAX = frozenset((F.softmax, torch.softmax, torch.Tensor.softmax))


def seen(function: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """[2, heads]: see `of_logits`; None for functions that are no attention."""
    if function is F.scaled_dot_product_attention:
        return _fused(*args, **kwargs)
    if function is F.multi_head_attention_forward:
        return _multi_head(_bound(function, args, kwargs))
    if function in _SOFTMAX:
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        return of_softmax(args[0] if args else kwargs["input"], axis)
    return None


def of_softmax(scores: torch.Tensor, axis: Any) -> torch.Tensor | None:
    """Of a softmax over keys: the last axis, of logits [.., heads, Q, K] or of as many queries as keys."""
    shape = scores.shape
    if axis not in (-1, len(shape) - 1) or len(shape) < 3 or (len(shape) == 3 and shape[-1] != shape[-2]):
        return None
    return of_logits(scores.detach().index_select(-2, some_rows(shape[-2], scores.device)))


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    if query.dim() > 3:
        whole = query.shape[0]
        query, key = query[:GROUPS], key[:GROUPS]
        attn_mask = attn_mask[:GROUPS] if attn_mask is not None and attn_mask.dim() > 3 and attn_mask.shape[0] == whole else attn_mask
    return of_logits(logits(query, key, attn_mask, is_causal, scale, enable_gqa))


@functools.lru_cache(maxsize=1)
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def _bound(function: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = _signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _multi_head(given: dict[str, Any]) -> torch.Tensor | None:
    """Queries and keys [T, N, E] are projected again, for some of the former."""
    query, key, heads = given["query"], given["key"], given["num_heads"]
    if query.dim() != 3 or given["bias_k"] is not None or given["static_k"] is not None:
        return None
    width, samples = query.shape[-1], query.shape[1]
    whole, bias = given["in_proj_weight"], given["in_proj_bias"]
    own = given["use_separate_proj_weight"]
    weights = (given["q_proj_weight"], given["k_proj_weight"]) if own else (whole[:width], whole[width : 2 * width])
    biases = (bias[:width], bias[width : 2 * width]) if bias is not None else (None, None)
    q, k = (
        F.linear(x.detach()[:, :GROUPS], w.detach(), b.detach() if b is not None else None).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key), weights, biases, strict=True)
    )
    mask, padding = given["attn_mask"], given["key_padding_mask"]
    if mask is not None:  # of torch's function True is masked
        mask = mask.unflatten(0, (samples, heads))[:GROUPS] if mask.dim() == 3 else mask
        mask = ~mask if mask.dtype == torch.bool else mask
    scores = logits(q, k, mask, mask is None and bool(given["is_causal"]), None, False)
    if padding is not None:
        dropped = (padding if padding.dtype == torch.bool else padding <= MASKED)[:GROUPS]
        scores = scores.masked_fill(dropped[:, None, None], -math.inf)
    return of_logits(scores)


def of_logits(scores: torch.Tensor) -> torch.Tensor | None:
    """[2, heads] of logits [.., heads, Q, K]: the largest, and the mean entropy of a row's softmax over log(keys); NaN without keys."""
    if not scores.is_floating_point() or scores.shape[-1] < FEWEST_KEYS or 0 in scores.shape:
        return None
    x = scores.detach().unsqueeze(-3) if scores.dim() == 3 else scores.detach()
    x = x.reshape(-1, *x.shape[-3:])
    x = x[: GROUPS * max(1, x.shape[0] // GROUPS) : max(1, x.shape[0] // GROUPS)].float()
    low = x < x.amax(-1, keepdim=True) + MASKED
    masked = (x < MASKED) & low | (x == -math.inf)
    largest = x.masked_fill(masked, -math.inf).amax((0, 2, 3))
    keys = (~masked).sum(-1)
    judged = keys >= FEWEST_KEYS
    weights = x.masked_fill(masked, -math.inf).softmax(-1)
    entropy = torch.special.entr(weights).sum(-1) / keys.clamp_min(2).log()
    mean = torch.where(judged, entropy, 0.0).sum((0, 2)) / judged.sum((0, 2))
    return torch.stack([largest, mean])
