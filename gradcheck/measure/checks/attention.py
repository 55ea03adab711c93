"""How attention weights are spread over the keys before training: one forward pass of a copy on a few samples, dropout left out.

Three ways lead to attention weights: `scaled_dot_product_attention`, whose weights are computed again from queries and
keys; `multi_head_attention_forward`, which can be asked for them; and any softmax, or any other rows that are not
negative and sum to 1, that a matrix product then multiplies with values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.instrument.kinds import NODE_MOVES, node_name
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.types.checks import Attention
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import some_samples

SAMPLES = 4
FEWEST_KEYS = 4  # fewer are a choice among a few branches, not attention
MOST_QUERIES = 32  # rows that are looked at
MOST_GROUPS = 64  # samples, or samples x windows
MASKED = -9e3  # logits this far below the largest of their row are masked: fills are -1e4, -1e9 or -inf
FAINT = 50.0  # least constant that masks by being subtracted from logits
SIDES = 0.2  # of that gap: how far the logits on either side may be spread
SUM_ERROR = 1e-2  # rows of half precision sum to 1 this closely
BEHIND = 16  # autograd nodes between a softmax and the product with the values

SOFTMAX = frozenset((F.softmax, torch.softmax, torch.Tensor.softmax))
_DROPOUT = frozenset((F.dropout, torch.dropout, torch.dropout_, torch.feature_dropout, F.alpha_dropout, F.dropout1d, F.dropout2d))
_PRODUCTS = frozenset((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm))
_EINSUM = torch.einsum
_LINKS = NODE_MOVES | frozenset(("Mul", "Div", "Where", "MaskedFill"))


@dataclass(frozen=True)
class Spread:
    """The numbers of an Attention."""

    heads: int
    keys: int
    entropy: float
    logit_max: float | None
    logit_std: float | None


def measure(context: CheckContext) -> tuple[Attention, ...]:
    """The attention layers of the workload before training, in order of their first call. Raises Unmeasured when it does not run."""
    watcher = _run(context, some_samples(context.workload, SAMPLES))
    if isinstance(watcher, Exception):
        raise Unmeasured("the forward pass raised an error when it was run again") from watcher
    return tuple(watcher.found.values())


def _run(context: CheckContext, batch: Any) -> Watcher | Exception:
    copy = context.fork()
    names = {id(m): name for name, m in copy.model.named_modules()}
    watcher = Watcher(names, context.sites, batch_size(batch))
    try:
        with watcher:
            copy.loss(batch)
    except Exception as error:
        return error
    return watcher


class Watcher(ActivationRecorder):
    """Taps that look at attention weights only."""

    def __init__(self, names: Mapping[int, str], sites: Mapping[str, Location | None], samples: int) -> None:
        super().__init__(names, functions=True)
        self.sites, self.samples = sites, samples
        self.found: dict[tuple[str, Location | None], Attention] = {}
        self._softmaxes: dict[Any, tuple[str, Location | None, Spread]] = {}  # by autograd node of the result

    def _module_call(self, *details: Any) -> None:
        """Modules only give their names."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.recording:
            return function(*args, **kwargs)
        if function in _DROPOUT:
            return args[0] if args else kwargs["input"]
        output = function(*args, **kwargs)
        try:
            with torch.no_grad():
                self._look(function, args, kwargs, output)
        except Exception as error:  # one layer that cannot be measured spoils nothing else
            self.failures[self.module_name] = f"{type(error).__name__}: {error}"
        return output

    def _look(self, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        if function is F.scaled_dot_product_attention:
            self._add(self._here(), fused(*args, samples=self.samples, **kwargs))
        elif function is F.multi_head_attention_forward:
            name = self.module_name
            self._add((name, self.sites.get(name) or location_of_frame(caller())), multi_head(function, args, kwargs))
        elif function in SOFTMAX:
            self._softmax(args, kwargs, output)
        elif function in _PRODUCTS:
            left, right = (*args, *kwargs.values())[:2]
            self._product(((left, -1, right), (right, -2, left)))
        elif function is _EINSUM:
            self._product(_contracted(args))

    def _here(self) -> tuple[str, Location | None]:
        return self.module_name, location_of_frame(caller())

    def _add(self, place: tuple[str, Location | None], spread: Spread | None) -> None:
        """Several calls at one place: the worst of each."""
        if spread is None:
            return
        layer, site = place
        before = self.found.get(place)
        new = Attention(layer, site, spread.heads, spread.keys, spread.entropy, spread.logit_max, spread.logit_std)
        if before is not None:
            new = replace(
                new if new.entropy < before.entropy else before,
                logit_max=_largest(before.logit_max, new.logit_max),
                logit_std=_largest(before.logit_std, new.logit_std),
            )
        self.found[place] = new

    def _softmax(self, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        scores = args[0] if args else kwargs["input"]
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if not isinstance(axis, int) or scores.dim() < 3 or scores.shape[axis] < FEWEST_KEYS or output.grad_fn is None:
            return
        spread = of_scores(scores.movedim(axis, -1), self.samples)
        if spread is not None:
            self._softmaxes[output.grad_fn] = (*self._here(), spread)

    def _product(self, operands: Any) -> None:
        """Operands that a product contracts, each with the axis and with what it is multiplied with."""
        for weights, axis, values in operands:
            if not isinstance(weights, torch.Tensor) or weights.dim() < 3 or weights.shape[axis] < FEWEST_KEYS:
                continue
            if not weights.requires_grad or not isinstance(values, torch.Tensor) or values.dim() < 3:
                continue  # a table of values, as codebooks are, is not what tokens say to each other
            known = self._origin(weights.grad_fn)
            if known is not None:
                self._add(known[:2], known[2])
                return
            if is_stochastic(weights, axis):
                self._add(self._here(), of_weights(weights.movedim(axis, -1), self.samples))
                return

    def _origin(self, node: Any) -> tuple[str, Location | None, Spread] | None:
        """The softmax that weights come from, with nothing but masks, factors and shape changes between."""
        queue, seen = [node], {node}
        while queue and len(seen) <= BEHIND:
            node = queue.pop(0)
            if node in self._softmaxes:
                return self._softmaxes[node]
            if node is not None and node_name(node) in _LINKS:
                more = [parent for parent, _ in node.next_functions if parent is not None and parent not in seen]
                queue += more
                seen.update(more)
        return None


def _largest(one: float | None, other: float | None) -> float | None:
    known = [x for x in (one, other) if x is not None]
    return max(known) if known else None


def _contracted(args: tuple[Any, ...]) -> Iterator[tuple[Any, int, Any]]:
    """The operands of an einsum with two operands and one index that both have and the result has not."""
    if len(args) != 3 or not isinstance(args[0], str) or "->" not in args[0] or args[0].count(",") != 1 or "." in args[0]:
        return
    inputs, _, result = args[0].replace(" ", "").partition("->")
    left, right = inputs.split(",")
    shared = [c for c in left if c in right and c not in result]
    if len(shared) == 1:
        yield args[1], left.index(shared[0]), args[2]
        yield args[2], right.index(shared[0]), args[1]


def is_stochastic(weights: torch.Tensor, axis: int) -> bool:
    """Whether all entries are not negative and sum to 1 along the axis."""
    x = weights.detach().float()
    return bool(x.min() >= 0) and bool((x.sum(axis) - 1).abs().max() <= SUM_ERROR)


def fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    samples: int = 1,
) -> Spread | None:
    """Of scaled_dot_product_attention: query [.., Q, E], key [.., K, E]; the other arguments are torch's."""
    return of_scores(logits(query, key, attn_mask, is_causal, scale, enable_gqa), samples)


def logits(
    query: torch.Tensor, key: torch.Tensor, attn_mask: torch.Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool
) -> torch.Tensor:
    """For some queries, [.., queries, K], -inf where masked; takes the arguments of scaled_dot_product_attention. Waits for no device."""
    chosen = some_rows(query.shape[-2], query.device)
    q, k = query.detach().index_select(-2, chosen).float(), key.detach().float()
    if enable_gqa and q.dim() > 3 and q.shape[-3] != k.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.arange(k.shape[-2], device=q.device) > chosen[:, None], -math.inf)
    if attn_mask is not None:
        mask = attn_mask.detach()
        mask = mask.index_select(-2, chosen) if mask.dim() >= 2 and mask.shape[-2] > 1 else mask
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores


def multi_head(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread | None:
    """Of multi_head_attention_forward, called again for its weights [N, heads, Q, K]."""
    with torch.no_grad():
        _, weights = function(*args, **kwargs | {"need_weights": True, "average_attn_weights": False, "training": False})
    weights = weights if weights.dim() == 4 else weights[None]
    masked = torch.zeros_like(weights, dtype=torch.bool)
    mask, padding = kwargs.get("attn_mask"), kwargs.get("key_padding_mask")
    if mask is not None:
        mask = as_bool(mask)
        masked |= mask if mask.dim() == 2 else mask.reshape(weights.shape[0], weights.shape[1], *mask.shape[-2:])
    if padding is not None:
        masked |= as_bool(padding).reshape(weights.shape[0], 1, 1, -1)
    return _spread(_logarithm(weights), masked, logits=False)


def as_bool(mask: torch.Tensor) -> torch.Tensor:
    """True where a mask of torch's functions takes keys out."""
    return mask if mask.dtype == torch.bool else mask <= MASKED


def of_scores(scores: torch.Tensor, samples: int) -> Spread | None:
    """Of logits [.., Q, K] with masked ones at -inf or far below the others. None without rows of enough keys."""
    x = _arranged(scores, samples)
    masked = (x < MASKED) & (x < x.amax(-1, keepdim=True) + MASKED) | (x == -math.inf)
    return _spread(x, masked | _faint_masks(x.masked_fill(masked, -math.inf)), logits=True)


def _faint_masks(x: torch.Tensor) -> torch.Tensor:
    """Logits that a constant was taken from, as shifted windows do with 100: a gap far wider than what lies on either side of it."""
    order = x.sort(-1, descending=True).values
    low = order.masked_fill(order == -math.inf, math.inf).amin(-1, keepdim=True)  # the lowest that is not masked
    gaps = (order[..., :-1] - order[..., 1:]).masked_fill(order[..., 1:] == -math.inf, 0.0)
    gap, at = gaps.max(-1, keepdim=True)
    above, below = order.gather(-1, at), order.gather(-1, at + 1)
    clear = (gap > FAINT) & (order[..., :1] - above < SIDES * gap) & (below - low < SIDES * gap)
    return clear & (x <= below)


def of_weights(weights: torch.Tensor, samples: int) -> Spread | None:
    """Of weights [.., Q, K] that sum to 1 over K.

    Zeros are masks where all samples and heads have them, or where all rows have equally many, as the best k of gates do; other
    zeros are weights that underflowed.
    """
    x = _arranged(weights, samples)
    zero = x == 0
    masked = zero.all(0).all(0).expand_as(zero)
    counts = zero.sum(-1)
    return _spread(_logarithm(x), zero if bool((counts == counts.flatten()[0]).all()) else masked, logits=False)


def _logarithm(weights: torch.Tensor) -> torch.Tensor:
    """Logits of the weights, up to a constant of each row; finite."""
    return weights.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def some_rows(count: int, device: torch.device) -> torch.Tensor:
    """Indices of the queries that are looked at."""
    return _chosen(count, MOST_QUERIES, device)


def _chosen(count: int, most: int, device: torch.device) -> torch.Tensor:
    """Indices of at most `most` of `count` rows, evenly spread, the last one with them."""
    return torch.linspace(0, count - 1, min(count, most), device=device).round().long()


def _arranged(x: torch.Tensor, samples: int) -> torch.Tensor:
    """[.., Q, K] as [groups, heads, Q, K], no more rows of it than needed. Axis -3 is the heads; a folded [N * heads, Q, K] is unfolded."""
    x = x.detach()
    x = x.index_select(-2, some_rows(x.shape[-2], x.device))
    if x.dim() == 3:
        groups = samples if samples and x.shape[0] % samples == 0 else x.shape[0]
        x = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
    x = x.reshape(-1, *x.shape[-3:])
    return x.index_select(0, _chosen(x.shape[0], MOST_GROUPS, x.device)).float()


def _spread(scores: torch.Tensor, masked: torch.Tensor, *, logits: bool) -> Spread | None:
    """scores, masked: [groups, heads, Q, K].

    A pattern that all samples share, such as distance biases, is no collapse: the entropy is the larger one of that of the weights as they
    are and that of the differences of the samples' logits from their mean; the spread of the logits is the smaller one.
    """
    keys = (~masked).sum(-1)
    judged = keys >= FEWEST_KEYS
    if not bool(judged.any()) or not bool(torch.isfinite(scores[~masked]).all()):
        return None
    entropy, std = _entropy(scores, masked, keys, judged), _std(scores, masked, keys, judged)
    if len(scores) > 1:
        plain = scores.masked_fill(masked, 0.0)
        seen = (~masked).sum(0, keepdim=True).clamp_min(1)
        own = (plain - plain.sum(0, keepdim=True) / seen) * (len(scores) / (len(scores) - 1)) ** 0.5
        entropy = torch.maximum(entropy, _entropy(own, masked, keys, judged))
        std = torch.minimum(std, _std(own, masked, keys, judged))
    largest = scores[(~masked) & judged[..., None]].abs().max().item() if logits else None
    return Spread(scores.shape[1], int(keys.max()), entropy.min().item(), largest, std.max().item())


def _entropy(scores: torch.Tensor, masked: torch.Tensor, keys: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    """[heads]: mean over groups and queries of the entropy of softmax(scores) over log(keys)."""
    return _mean(row_entropy(scores, masked, keys), judged)


def row_entropy(scores: torch.Tensor, masked: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Of the softmax of each row, over log(keys)."""
    weights = scores.masked_fill(masked, -math.inf).softmax(-1)
    return torch.special.entr(weights).sum(-1) / keys.clamp_min(2).log()


def _std(scores: torch.Tensor, masked: torch.Tensor, keys: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    """[heads]: root mean over groups and queries of the variance of the logits of a row."""
    plain = scores.masked_fill(masked, 0.0)
    count = keys.clamp_min(1)[..., None]
    centred = (plain - plain.sum(-1, keepdim=True) / count).masked_fill(masked, 0.0)
    return _mean(centred.square().sum(-1) / keys.clamp_min(1), judged).sqrt()


def _mean(values: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    """[heads] of [groups, heads, Q], over judged rows; heads without one take the mean of the others."""
    total = torch.where(judged, values, 0.0).sum((0, 2))
    count = judged.sum((0, 2))
    return torch.where(count > 0, total / count.clamp_min(1), total.sum() / count.sum())
