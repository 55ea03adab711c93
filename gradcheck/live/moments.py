"""Adam's second moment: how far it lags behind the gradients of a step, and what it remembers of the steps since it was last read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gradcheck.measure.parameters import Watched, joined, sampled_entries
from gradcheck.workload.dtensor import local

SQUARES = "exp_avg_sq"  # in the state of Adam, AdamW, NAdam, RAdam and of most that follow them


@dataclass
class _Tensor:
    name: str
    layer: str
    size: int  # entries of the sample
    count: int
    beta: float
    floor: float  # epsilon, squared
    steps: float  # that the moment has seen


@dataclass(frozen=True)
class Moment:
    name: str
    layer: str
    lag: float  # root mean of g^2 over the second moment, about 1 if the moment keeps up
    since: float | None  # norm of the gradients since the last look, a root mean over its steps; None: there was none


@dataclass
class Moments:
    """`look` right after a step; bring what it returns to the host, and then `read` it.

    It looks at samples of the gradient and of the second moment as they are after the step, which was made of them.
    """

    _tensors: list[_Tensor] = field(default_factory=list)
    _views: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict)  # of second moments, and where these lie
    _before: dict[str, tuple[float, float]] = field(default_factory=dict)  # tensor -> steps and mean of its second moment

    def look(self, optimizer: torch.optim.Optimizer | None, watched: Sequence[Watched]) -> list[torch.Tensor]:
        known = {id(w.tensor): w for w in watched}
        found: list[tuple[_Tensor, torch.Tensor, torch.Tensor]] = []
        for group in optimizer.param_groups if optimizer is not None else ():
            betas, epsilon = group.get("betas"), group.get("eps")
            if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not isinstance(betas[1], float) or not epsilon:
                continue
            for p in group["params"]:
                state, w = optimizer.state.get(p, {}) if optimizer is not None else {}, known.get(id(p))
                steps, square = _on_host(state.get("step")), state.get(SQUARES)
                if w is None or p.grad is None or not isinstance(square, torch.Tensor) or steps is None:
                    continue
                gradient, square = local(p.grad), local(square)
                if gradient.shape != square.shape or gradient.is_complex() or gradient.layout is not torch.strided or not gradient.numel():
                    continue
                sample = sampled_entries(gradient)
                tensor = _Tensor(w.name, w.layer, sample.numel(), gradient.numel(), betas[1], float(epsilon) ** 2, steps)
                found.append((tensor, sample, self._sampled(w.name, square)))
        found.sort(key=lambda f: f[1].dim())  # those of one shape are joined in one call
        self._tensors = [tensor for tensor, _, _ in found]
        return [*joined([gradient for _, gradient, _ in found]), *joined([square for _, _, square in found])]

    def _sampled(self, name: str, square: torch.Tensor) -> torch.Tensor:
        """The same view as long as the tensor stays where it is in memory."""
        place, (before, view) = square.data_ptr(), self._views.get(name, (0, square))
        if before != place:
            view = sampled_entries(square)
            if view.data_ptr() == place:  # else it is a copy, which does not follow
                self._views[name] = place, view
        return view

    def read(self, arrived: Sequence[torch.Tensor], between: bool = False) -> list[Moment]:
        """`between`: two measured steps, whose own look is to find all that happened since the one before it."""
        if not arrived or not self._tensors:
            return []
        half = len(arrived) // 2
        gradients, squares = (torch.cat([t.double() for t in part]).numpy() for part in (arrived[:half], arrived[half:]))
        sizes, known = [t.size for t in self._tensors], self._tensors
        starts = np.cumsum([0, *sizes[:-1]])
        with np.errstate(all="ignore"):
            factors = np.repeat([1 / (1 - t.beta**t.steps) if t.steps else np.nan for t in known], sizes)
            ratios = np.square(gradients) / np.maximum(squares * factors, np.repeat([t.floor for t in known], sizes))
            lags, means = ((np.add.reduceat(x, starts) / sizes).tolist() for x in (ratios, squares))
        found = zip(known, lags, means, strict=True)
        return [Moment(t.name, t.layer, lag**0.5, None if between else self._since(t, mean)) for t, lag, mean in found]

    def _since(self, t: _Tensor, mean: float) -> float | None:
        """The moment is a sum of squares that decays at a known rate: a spike between two looks is still in it."""
        steps, before = self._before.get(t.name, (0.0, 0.0))
        self._before[t.name] = t.steps, mean
        kept = t.beta ** (t.steps - steps) if t.steps > steps else 1.0
        return max(0.0, (mean - kept * before) / (1 - kept) * t.count) ** 0.5 if kept < 1 else None


def _on_host(steps: object) -> float | None:
    """A count, where no device has to be waited for."""
    return float(steps) if isinstance(steps, (int, float)) or (isinstance(steps, torch.Tensor) and steps.is_cpu) else None
