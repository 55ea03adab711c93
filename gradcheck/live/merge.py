"""A distributed run: at each measured step every rank reports what it saw, and rank 0 makes one record of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gradcheck.config.settings import EVERY
from gradcheck.live.rank_statistics import Share, merge_events, merge_layers, merge_losses, merge_parameters, share_of
from gradcheck.live.record import Record
from gradcheck.live.replicas import RankLevels, replicated, wrapper_of
from gradcheck.measure.parameters import StepWatch
from gradcheck.types.gauges import RankFacts, RankLoss, RankStep
from gradcheck.types.measurement import NotMeasured
from gradcheck.workload.dtensor import is_spread
from gradcheck.workload.ranks import RankGroup
from gradcheck.workload.replicas import Replica, compare
from gradcheck.workload.sharding import trains_on_parts

FIRST, LAST = 8, 32  # comparisons that are kept


@dataclass
class MergedLosses:
    """Kept by the monitor of each rank. `losses`: those of this rank that were not reported yet."""

    ranks: RankGroup
    record: Record
    losses: list[float] = field(default_factory=list)
    _last: float = 0.0
    _wrapper: str = ""
    _names: frozenset[str] = frozenset()
    _why: str = ""  # replicas are not compared
    _steps: list[RankStep] = field(default_factory=list)
    _broken: dict[int, RankLoss] = field(default_factory=dict)
    _levels: RankLevels = field(default_factory=RankLevels)
    _alike: list[bool] = field(default_factory=list)  # at measured steps: whether all ranks were given the same
    _elsewhere: set[str] = field(default_factory=set)  # layers that rank 0 does not run

    def prepare(self, know_parameters: Callable[[], object]) -> None:
        """Looks at how the model is spread over the ranks; gives them up where that cannot be told."""
        try:
            self._look()
            if self.sharded:
                know_parameters()  # later they are sometimes whole: other tensors with the same names
        except Exception as error:  # there are more ways to spread models than anyone thought of
            self.ranks.give_up(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        self._tell()
        if not self.ranks.joined:
            return
        wrapper = wrapper_of(self.record.model)
        self._wrapper = type(wrapper).__name__ if wrapper is not None else ""
        names = replicated(self.record.model, wrapper)
        self._names, self._why = (frozenset(), names) if isinstance(names, str) else (names, "")

    @property
    def leads(self) -> bool:
        return self.ranks.leads

    @property
    def bad(self) -> bool:
        """This rank's last loss is not finite."""
        return not math.isfinite(self._last)

    @property
    def sharded(self) -> bool:
        return any(is_spread(p) for p in self.record.model.parameters())

    def note_loss(self, value: float) -> None:
        """The loss of this rank. It goes into the record when the others' are known, or at once if they never will be."""
        self._last = value
        if self.ranks.joined:
            self.losses.append(value)
        else:
            self.record.note_loss(value)

    def exchange(self, step: int, watching: StepWatch | None, interval: int | None) -> int | None:
        """All ranks are in the same measured step, if they count alike. Returns the number of steps to the next one, the same for all.

        `interval`: as this rank would have it. None: it need not be agreed on.
        """
        if not self.ranks.joined:
            return None
        share = share_of(self.record, watching, self.losses, step)
        heard: list[Share] | None = self.ranks.gather(step, share)
        if heard is not None and not self.leads:
            self.record.non_finite = []  # reported, and rank 0's to keep
        elif heard is not None:
            self._merge(step, heard)
        else:
            for value in self.losses:
                self.record.note_loss(value)
        self.losses = []
        self._tell()
        if interval is None or not self.ranks.joined:
            return None
        return self.ranks.agree(interval) or EVERY

    def _merge(self, step: int, shares: Sequence[Share]) -> None:
        record = self.record
        self._merge_losses({rank: s.losses for rank, s in enumerate(shares)})
        merge_events(record, shares, range(len(shares)))
        self._elsewhere.update(merge_layers(record, shares, step))
        merge_parameters(record, shares, step)
        self._alike.append(_are_alike(shares))
        told = [{n: Replica(p.sample, p.step.norm, p.step.gradient_norm) for n, p in s.parameters.items()} for s in shares]
        seen = compare(step, told, self._names)
        if seen is not None:
            self._steps.append(seen)
            if len(self._steps) > FIRST + LAST:
                del self._steps[FIRST]

    def _merge_losses(self, losses: dict[int, list[float]]) -> None:
        begin = self.record.losses.count
        for rank, values in losses.items():
            first = next((i for i, x in enumerate(values) if not math.isfinite(x)), None)
            if first is not None and rank not in self._broken:
                self._broken[rank] = RankLoss(rank, begin + first)
        for step, together in enumerate(zip(*losses.values(), strict=False), begin):
            self._levels.note(dict(zip(losses, together, strict=True)), step)
        for value in merge_losses(list(losses.values())):
            self.record.note_loss(value)

    def leave(self) -> None:
        """This rank's run is over."""
        heard: dict[int, Share] = self.ranks.leave(Share(self.losses, tuple(self.record.non_finite)))
        if self.leads:
            own = {0: Share(self.losses, tuple(self.record.non_finite))}
            said = own | heard
            self._merge_losses({rank: s.losses for rank, s in said.items()})
            if heard:
                merge_events(self.record, list(said.values()), list(said))
        self.losses = []
        self._tell()

    def _tell(self) -> None:
        broken = tuple(sorted(self._broken.values(), key=lambda b: b.step))
        own_data = trains_on_parts(self.record.model) if self.sharded else not self._why
        same = len(self._alike) if own_data and all(self._alike) else 0
        facts = RankFacts(self.ranks.count, self._wrapper, tuple(self._steps), broken, self._levels.furthest(), self._levels.jump, same)
        self.record.ranks = facts
        self.record.apart = list(self._lacking())

    def _lacking(self) -> list[NotMeasured]:
        lacking = []
        if not self.leads:
            lacking.append(NotMeasured("ranks", f"this is rank {self.ranks.rank}: rank 0 reports for all"))
        elif self.ranks.why:
            lacking.append(NotMeasured("ranks", f"from here on the numbers are those of rank 0 alone: {self.ranks.why}"))
        if self._why:
            lacking.append(NotMeasured("replicas", self._why))
        lacking += [NotMeasured(f"layer {name}", "it does not run on rank 0") for name in sorted(self._elsewhere)]
        return lacking


def _are_alike(shares: Sequence[Share]) -> bool:
    """Whether all layers give the same on all ranks, to the last bit."""
    told = [{name: layer.snapshot.output for name, layer in s.layers.items()} for s in shares]
    return bool(told[0]) and all(t == told[0] for t in told)
