"""What the taps of a measured step look at besides outputs and gradients: attention, the head's softmax, and the choices of routers.
Everything is reduced on its device and brought to the host with the statistics of the step.
"""

import functools
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.attention import FEWEST_KEYS, MASKED, SOFTMAX, as_bool, logits, row_entropy, some_rows
from gradcheck.measure.checks.routing import CHOICES, ExpertGroup, chosen_in, follows, near

ROWS = 256  # of the head's output, whose softmax is looked at

Bring = Callable[[torch.Tensor, Callable[[torch.Tensor], None]], None]


@dataclass
class ExpertChoice:
    """A choice among experts. Numbers on the host, once settled: [loads of the experts, mean entropy over log(experts)]."""

    layer: str
    experts: int
    chosen: int
    tokens: int
    numbers: list[float] = field(default_factory=list)

    def set_numbers(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers.tolist()


@dataclass
class Looks:
    """Of one measured step. `groups`: what could be experts."""

    groups: Sequence[ExpertGroup]
    heads: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # layer -> [2, heads] of each call
    log_z: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # output layer -> 0-d
    given: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # normalization -> size of its input, 0-d
    ranks: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # output layer -> of its input, 0-d
    choices: list[ExpertChoice] = field(default_factory=list)
    _rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # that experts were given
    _given: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _kept: list[torch.Tensor] = field(default_factory=list)  # so that no other tensor gets its id

    def __post_init__(self) -> None:
        self._members = {m for g in self.groups for m in g.members}
        self._counts = {g.count for g in self.groups}

    @property
    def needs_functions(self) -> bool:
        """Whether something was seen that only function calls show."""
        return bool(self.heads or self.choices)

    @torch.no_grad()
    def function(self, function: Any, args: Any, kwargs: dict[str, Any], output: Any, layer: str, bring: Bring) -> None:
        found = seen(function, args, kwargs)
        if found is not None:
            bring(found, self.heads[layer].append)
        elif self._counts and getattr(function, "__name__", "") in CHOICES:
            scores, index = chosen_in(args, kwargs, output, self._counts)
            if scores is not None and index is not None:
                self._choice(scores.float(), index.reshape(-1), layer, bring)

    @torch.no_grad()
    def module(
        self, kind: str, module: Any, name: str, inputs: Sequence[torch.Tensor], output: torch.Tensor, head: bool, bring: Bring
    ) -> None:
        """`head`: the loss is made of its output."""
        if name in self._members and inputs:
            self._rows[name] += inputs[0].numel() // max(1, inputs[0].shape[-1])
            self._given[name].add(id(inputs[0]))
            self._kept.append(inputs[0])
        if kind == "softmax" and inputs:
            found = of_softmax(inputs[0], getattr(module, "dim", None))
            if found is not None:
                bring(found, self.heads[name].append)
        if kind == "norm" and inputs and not isinstance(module, nn.modules.batchnorm._NormBase):
            bring(inputs[0].detach().float().square().mean().sqrt(), self.given[name].append)
        if head and kind == "linear" and inputs and inputs[0].dim() >= 2:
            bring(effective_rank(inputs[0].detach()), self.ranks[name].append)
        if head and kind == "linear" and output.dim() >= 2 and output.shape[-1] > 1:
            bring(_rows(output.detach()).logsumexp(-1).mean(), self.log_z[name].append)

    def _choice(self, scores: torch.Tensor, index: torch.Tensor, layer: str, bring: Bring) -> None:
        count, sums = scores.shape[1], scores.sum(-1)
        given = (scores >= 0).all() & ((sums - 1).abs() < 1e-3).all()  # probabilities already
        entropy = torch.special.entr(torch.where(given, scores, scores.softmax(-1))).sum(-1).mean() / scores.new_tensor(count).log()
        loads = scores.new_zeros(count).index_add(0, index.clamp_max(count - 1), scores.new_ones(len(index)))
        choice = ExpertChoice(layer, count, len(index) // max(1, len(scores)), len(scores))
        self.choices.append(choice)
        bring(torch.cat([loads, entropy[None]]), choice.set_numbers)

    def routed(self) -> list[ExpertChoice]:
        """The choices that experts follow, grouped by layer, once settled."""
        self._kept.clear()
        whole: dict[tuple[str, int, int], ExpertChoice] = {}
        for c in self.choices:
            if c.numbers:
                known = whole.setdefault(
                    (c.layer, c.experts, c.chosen), ExpertChoice(c.layer, c.experts, c.chosen, 0, [0.0] * len(c.numbers))
                )
                tokens = known.tokens + c.tokens
                entropy = (known.numbers[-1] * known.tokens + c.numbers[-1] * c.tokens) / max(1, tokens)
                known.numbers = [*(a + b for a, b in zip(known.numbers[:-1], c.numbers[:-1], strict=True)), entropy]
                known.tokens = tokens
        return [c for c in whole.values() if any(self._fits(c, g) for g in self.groups)]

    def _fits(self, choice: ExpertChoice, group: ExpertGroup) -> bool:
        same = group.count == choice.experts and near(group.owner, choice.layer)
        return same and follows(group, choice.numbers[:-1], self._rows, self._given)


def _rows(values: torch.Tensor) -> torch.Tensor:
    """An even sample of the vectors along the last dimension, [ROWS or a few more, D]."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[:: max(1, len(rows) // ROWS)].float()


def effective_rank(features: torch.Tensor) -> torch.Tensor:
    """(sum of the variances of all directions)^2 over the sum of their squares, 0-d: 1 to D. Needs no eigenvalues."""
    rows = _rows(features)
    rows = rows - rows.mean(0)
    products = rows @ rows.T if len(rows) < rows.shape[-1] else rows.T @ rows
    return products.trace().square() / products.square().sum()


GROUPS = 4  # samples


def seen(function: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """[2, heads]: see `of_logits`; None for functions that are no attention."""
    if function is F.scaled_dot_product_attention:
        return _fused(*args, **kwargs)
    if function is F.multi_head_attention_forward:
        return _multi_head(_bound(function, args, kwargs))
    if function in SOFTMAX:
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
        scores = scores.masked_fill(as_bool(padding)[:GROUPS, None, None], -math.inf)
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
    mean = torch.where(judged, row_entropy(x, masked, keys), 0.0).sum((0, 2)) / judged.sum((0, 2))
    return torch.stack([largest, mean])
