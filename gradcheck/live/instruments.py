"""What a measured step shows besides its layers and parameters, filed as gauges and routers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from gradcheck.live.gauges import Gauges
from gradcheck.live.looks import Choice, Looks
from gradcheck.live.moments import Moments
from gradcheck.measure.layers import Layers
from gradcheck.measure.parameters import Watched
from gradcheck.types.structure import Router

RECENT = 4  # measured steps from which the loads of a router are taken: a scan looks at as many batches


@dataclass
class Instruments:
    """`gauges`: all but the routers, whose loads are counted."""

    gauges: Gauges = field(default_factory=Gauges)
    _routers: dict[str, list[Choice]] = field(default_factory=dict)  # layer -> the first choices, and the last ones
    _moments: Moments = field(default_factory=Moments)

    def riders(self, optimizer: torch.optim.Optimizer | None, watched: Sequence[Watched]) -> list[torch.Tensor]:
        """After the step: what should come to the host with the updates, for `note_step`."""
        return self._moments.look(optimizer, watched)

    def note_step(self, step: int, watched: Iterable[Watched], arrived: Sequence[torch.Tensor], scale: float | None, raw: bool) -> None:
        """`scale`: of a GradScaler; `raw`: the gradients still held it.

        If the optimizer remembers them, the gradients of a tensor since the last measured step count, too.
        """
        told: dict[str, float | None] = {}
        for m in self._moments.read(arrived):
            told[m.name] = m.since
            if not raw:
                self.gauges.note("second-moment-lag", m.name, m.layer, step, m.lag)
        for w in watched:
            last = w.steps[-1] if w.steps else None
            norm = told.get(w.name, last.gradient_norm if last is not None and last.step == step else None)
            if norm is not None:
                self.gauges.note("gradient", w.name, w.layer, step, norm)
        if scale is not None:
            self.gauges.note("loss-scale", "GradScaler", "", step, scale)

    def look_between(self, step: int, optimizer: torch.optim.Optimizer | None, watched: Sequence[Watched]) -> None:
        """After a step that is not measured, in which something jumped."""
        riders = self._moments.look(optimizer, watched)
        if all(r.is_cpu for r in riders):  # no device is waited for
            for m in self._moments.read(riders, between=True):
                self.gauges.note("second-moment-lag", m.name, m.layer, step, m.lag, between=True)

    def note_looks(self, step: int, looks: Looks, crossed: bool) -> None:
        """Of the pass that counts. `crossed`: the loss is a cross entropy."""
        for layer, several in looks.heads.items():
            if any(t.shape != several[0].shape for t in several):
                continue
            calls = torch.stack(several)
            for head, (largest, entropy) in enumerate(zip(calls[:, 0].amax(0).tolist(), calls[:, 1].mean(0).tolist(), strict=True)):
                name = f"{layer or 'the model'}, head {head}" if calls.shape[-1] > 1 else layer
                self.gauges.note("attention-logit", name, layer, step, largest)
                self.gauges.note("attention-entropy", name, layer, step, entropy)
        for layer, values in looks.log_z.items() if crossed else ():
            self.gauges.note("log-z", layer, layer, step, abs(_mean(values)))
        for layer, values in looks.given.items():
            self.gauges.note("stream", layer, layer, step, _mean(values))
        for layer, values in looks.ranks.items():
            self.gauges.note("effective-rank", layer, layer, step, _mean(values))
        for choice in looks.routed():
            self._route(step, choice)

    def note_units(self, step: int, layers: Layers) -> None:
        """Once the layers of the step are on record."""
        for name, share in layers.dormant():
            self.gauges.note("dormant-share", name, name, step, share)

    def _route(self, step: int, choice: Choice) -> None:
        kept = self._routers.setdefault(choice.layer, [])
        if kept and (kept[0].experts, kept[0].chosen) != (choice.experts, choice.chosen):
            return
        kept.append(choice)
        del kept[1:-RECENT]
        total = sum(choice.numbers[:-1])
        for expert, load in enumerate(choice.numbers[:-1]):
            self.gauges.note("expert-load", f"{choice.layer or 'the model'}, expert {expert}", choice.layer, step, load / max(total, 1.0))

    def routers(self) -> tuple[Router, ...]:
        return tuple(_router(layer, kept) for layer, kept in self._routers.items())


def _mean(values: Sequence[torch.Tensor]) -> float:
    return math.fsum(v.item() for v in values) / len(values)


def _router(layer: str, kept: Sequence[Choice]) -> Router:
    last = kept[-RECENT:]
    tokens = sum(c.tokens for c in last)
    entropy = math.fsum(c.numbers[-1] * c.tokens for c in last) / max(1, tokens)
    return Router(layer, kept[0].experts, kept[0].chosen, tokens, _loads(last), _loads(kept[:1]), entropy)


def _loads(choices: Sequence[Choice]) -> tuple[float, ...]:
    counts = [math.fsum(counts) for counts in zip(*(c.numbers[:-1] for c in choices), strict=True)]
    total = math.fsum(counts) or 1.0
    return tuple(c / total for c in counts)
