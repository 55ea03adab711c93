"""What the taps of a measured step look at besides outputs and gradients: attention, the head's softmax, and the choices of routers.
Everything is reduced on its device and brought to the host with the statistics of the step.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.live import attention
from gradcheck.measure.checks.routing import CHOICES, Group, chosen_in, follows, near

ROWS = 256  # of the head's output, whose softmax is looked at

Bring = Callable[[torch.Tensor, Callable[[torch.Tensor], None]], None]


@dataclass
class Choice:
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

    groups: Sequence[Group]
    heads: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # layer -> [2, heads] of each call
    log_z: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # output layer -> 0-d
    given: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # normalization -> size of its input, 0-d
    ranks: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))  # output layer -> of its input, 0-d
    choices: list[Choice] = field(default_factory=list)
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
        found = attention.seen(function, args, kwargs)
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
            found = attention.of_softmax(inputs[0], getattr(module, "dim", None))
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
        choice = Choice(layer, count, len(index) // max(1, len(scores)), len(scores))
        self.choices.append(choice)
        bring(torch.cat([loads, entropy[None]]), choice.set_numbers)

    def routed(self) -> list[Choice]:
        """The choices that experts follow, grouped by layer, once settled."""
        self._kept.clear()
        whole: dict[tuple[str, int, int], Choice] = {}
        for c in self.choices:
            if c.numbers:
                known = whole.setdefault((c.layer, c.experts, c.chosen), Choice(c.layer, c.experts, c.chosen, 0, [0.0] * len(c.numbers)))
                tokens = known.tokens + c.tokens
                entropy = (known.numbers[-1] * known.tokens + c.numbers[-1] * c.tokens) / max(1, tokens)
                known.numbers = [*(a + b for a, b in zip(known.numbers[:-1], c.numbers[:-1], strict=True)), entropy]
                known.tokens = tokens
        return [c for c in whole.values() if any(self._fits(c, g) for g in self.groups)]

    def _fits(self, choice: Choice, group: Group) -> bool:
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
