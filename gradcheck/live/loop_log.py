"""What a watched loop does around its passes and steps: the journal of its events, and what measured steps add to it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from gradcheck.capture.retained import Retained
from gradcheck.capture.weighting import ElementWeight, element_weight, gradient_sample, weighed, weighting
from gradcheck.instrument.averages import Averages
from gradcheck.instrument.loop_journal import Evaluations, LoopJournal
from gradcheck.instrument.traced_optimizer import TracedOptimizer
from gradcheck.types.location import Location
from gradcheck.types.loop import NO_SCALER, LoopFacts, LoopScaler, LoopWeighting

MOST_RATES = 1000  # steps, from the first one on, whose rates are kept
STEEP = 2.0  # times: a rate that changes by more from one step to the next is kept with its step, whenever that is
MOST_TURNS = 256  # of these changes
MOST_BATCHES = 64  # measured steps whose batches are compared
SOME_PASSES = 8  # backward passes after which a loop that is over is found to lack a step
MOST_PASSES = 160  # likewise of a loop that goes on: it may accumulate the gradients of many
FOLLOWED = 8, 64  # parameters, and entries of each, that tell whether anything moves them
MOST_WEIGHED = 64  # measured steps in which elements are weighed


@dataclass
class _Pass:
    """One of the accumulated passes of a measured step."""

    weight: ElementWeight | None
    gradient: torch.Tensor | None = None
    place: Location | None = None


@dataclass
class LoopLog:
    """Counts are over measured steps, in which values on a device may be read. None, as in LoopFacts: it could not be observed."""

    journal: LoopJournal | None = None
    averages: Averages | None = None
    retained: Retained | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)
    steps: int = 0
    leftover: int = 0
    lost: int = 0
    dropped: int = 0
    rates: list[float] | None = field(default_factory=list)
    turns: dict[int, float] = field(default_factory=dict)  # the rate by step, before and after each steep change
    stepped: int = 0  # steps whose rate was seen
    rate: float = 0.0  # of the last of them
    _last: list[Any] | None = None  # by group
    base_rate: float = 0.0
    bare: int = 0  # steps on gradients that were still scaled
    alone: int = 0  # steps that were not taken by a scaler
    passes: int = 0  # backward passes of the model, before the first step
    over: bool = False  # no one listens any more
    edited: bool = False  # something that was not seen changed the gradients before a step
    samples: int = 0  # in a batch
    called_site: Location | None = None  # where the model is called with it
    _first: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # parameters, and entries of them as they were
    _batches: list[int] = field(default_factory=list)  # digests, one a step
    _passes: Counter[int] = field(default_factory=Counter)
    _mixed: bool = False  # steps had passes of several lines, which cannot be counted apart
    _begun: list[_Pass] = field(default_factory=list)  # of the step that is measured
    _weighed: list[LoopWeighting] = field(default_factory=list)

    # ------------------------------------------------------------------- writing

    def remember(self, parameters: Iterable[torch.Tensor]) -> None:
        """Before the first step: samples that show whether these parameters move without any step."""
        self._first = [(p, _entries(p)) for p in islice((p for p in parameters if not is_lazy(p)), FOLLOWED[0])]

    def note_rate(self, groups: Sequence[dict[str, Any]]) -> None:
        """Called at every step. It does not wait for a rate on a device."""
        if self.rates is None:
            return
        values = [g.get("lr", 0.0) for g in groups]
        if values == self._last:
            if self.stepped < MOST_RATES:
                self.rates.append(self.rate)
            self.stepped += 1
            return
        if any(isinstance(v, torch.Tensor) and v.device.type != "cpu" for v in values):
            self.rates = None
            return
        value = max((float(v) for v in values if v is not None), default=0.0)
        if not self.stepped and groups:
            self.base_rate = float(groups[0].get("initial_lr") or 0.0)
        if self.stepped and not self.rate <= STEEP * value <= STEEP * STEEP * self.rate and len(self.turns) < MOST_TURNS:
            self.turns |= {self.stepped - 1: self.rate, self.stepped: value}
        if self.stepped < MOST_RATES:
            self.rates.append(value)
        self.stepped, self.rate = self.stepped + 1, value
        self._last = values if all(type(v) is float for v in values) else None  # a tensor may change in place

    def begin_pass(self, loss: torch.Tensor) -> None:
        """A backward pass of a measured step begins that accumulates."""
        self._begun.append(_Pass(element_weight(loss)))

    def end_pass(self, parameters: Iterable[torch.Tensor]) -> None:
        if self._begun and self._begun[-1].weight is not None:
            self._begun[-1].gradient = gradient_sample(dict(enumerate(parameters)))

    def forget_passes(self) -> None:
        self._begun = []

    def note_passes(self, passes: int, lines: int) -> None:
        """Backward passes of a step, and the lines that ran them."""
        if lines == 1:
            self._passes[passes] += 1
            one = weighed(self._begun) if len(self._begun) == passes and len(self._weighed) < MOST_WEIGHED else None
            self._weighed += [one] if one is not None else []
        elif passes == lines:
            self._passes[1] += 1
        else:
            self._mixed = True

    def note_batch(self, digests: Sequence[int], samples: int, site: Location | None) -> None:
        """What the model was called with in a step."""
        if digests and len(self._batches) < MOST_BATCHES:
            self._batches.append(hash(tuple(digests)))
            self.samples, self.called_site = samples, site

    # ------------------------------------------------------------------- reading

    @property
    def accumulated(self) -> int | None:
        if self._mixed or not self._passes:
            return None
        return self._passes.most_common(1)[0][0]

    def scaling(self) -> LoopScaler:
        scaler = self.journal.scaler if self.journal is not None else None
        if self.journal is None or scaler is None:
            return NO_SCALER
        return self.journal.scaling(self.bare if scaler.enabled else self.alone * bool(scaler.scaled))

    def facts(self, traced: TracedOptimizer | None, backwards: int, site: Location | None, untapped: bool) -> LoopFacts | None:
        """`untapped`: the inside of the model is not seen, so its passes and modes are unknown. None: there is nothing to go by."""
        journal = self.journal
        if journal is not None and not self.steps:
            return self._without_steps(journal, traced, site)
        if journal is None or traced is None or self.steps < 2:
            return None
        clips, sites = journal.clips_of(traced), journal.eval_sites.values()
        batches = self._batches
        averages = self.averages
        return LoopFacts(
            steps=self.steps,
            taken=traced.taken,
            backwards=backwards,
            ended="stopped",
            parameters=len(traced.parameters),
            rates=tuple(self.rates) if self.rates is not None else None,
            base_rate=self.base_rate,
            leftover=self.leftover,
            lost=None if untapped else self.lost,
            accumulated=None if untapped else self.accumulated,
            dropped=None if untapped else self.dropped,
            clips=clips or (None if self.edited else ()),
            scaler=self.scaling(),
            evaluation=None if untapped else self.evaluations.record(next((p for p in sites if p is not None), None)),
            batches=journal.batches(len(batches), len(set(batches)), self.samples, None, self.called_site) if batches else None,
            averages=averages.facts(traced.ids, None) if averages is not None else None,
            retained=self.retained.most() if self.retained is not None else None,
            weighting=weighting(self._weighed),
            made_site=traced.site,
            backward_site=site,
            **journal.facts(traced),
        )

    def _without_steps(self, journal: LoopJournal, traced: TracedOptimizer | None, site: Location | None) -> LoopFacts | None:
        """Whether the loop runs backward passes and never steps, if that can be told: a scaler may have skipped the first steps."""
        scales = journal.scaler is not None and journal.scaler.steps > 0
        if self.passes < (SOME_PASSES if self.over else MOST_PASSES) or scales or not self._first:
            return None
        moved = sum(not torch.equal(_entries(p), before) for p, before in self._first)
        label, count = (traced.label, len(traced.parameters)) if traced is not None else ("", len(self._first))
        return LoopFacts(label, 0, self.passes, moved=moved, parameters=count, backward_site=site)


def _entries(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().reshape(-1)[: FOLLOWED[1]].clone()
