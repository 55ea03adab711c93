"""Remedies that no finding asks for: searched when those that findings ask for do not make the model train.

Rates first, since a wrong rate is the most frequent fault and hides what else would help; then regimens, everything at once that fits,
since faults hide each other's cures; then what helps most often of initialisation, data and, where that is allowed, architecture;
then the rest of each, alone and in pairs, at the rates around the best one so far. Every round is a tournament by successive halving
(Jamieson and Talwalkar 2016) on one seed; what trains well there has to do so on a second one, and has yet to be proved on others.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, zip_longest

from gradcheck.errors import GradcheckError
from gradcheck.repair.lab import PATIENCE, Plan, RepairLab, TimeUp, signature
from gradcheck.repair.plan import ADAPTIVE, adapts, allowed, rate_of, usual_rates, with_rate, without_rate
from gradcheck.repair.rescan import WELL
from gradcheck.training.paired import survivors
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable

Names = tuple[str, ...]


def _alone(names: str) -> tuple[Names, ...]:
    return tuple((name,) for name in names.split())


# Everything at once, for models with several faults that hide each other's cures; what does not fit a model is left out,
# and what turns out to be unnecessary is dropped afterwards.
_GENTLE: Names = ("standardize-input", "standardize-target", "weaker-weight-decay", "lower-dropout")
_RECURRENT: Names = ("orthogonal-recurrent", "forget-bias")
REGIMENS: tuple[Names, ...] = (
    _GENTLE,
    (*_GENTLE, "lsuv-init", *_RECURRENT),
    (*_GENTLE, "orthogonal-init", *_RECURRENT),
    (*_GENTLE, "lsuv-init", *_RECURRENT, "warm-up", "clip-gradient-norm"),
)
REBUILDS: tuple[Names, ...] = (
    (*_GENTLE, "pre-norm", "gated-recurrence", "insert-normalization", "lsuv-init", *_RECURRENT),
    (*_GENTLE, "adaptive-optimizer", "pre-norm", "gated-recurrence", "insert-normalization", "lsuv-init", *_RECURRENT),
    (*_GENTLE, "replace-activation", "insert-normalization", "lsuv-init"),
    (*_GENTLE, "replace-activation", "add-residual", "insert-normalization", "lsuv-init"),
)

# What made most workloads of benchmarks/repair.py train that no rate did (seeds below 1000).
# Starts leave the architecture as it is, builds do not.
FIRST_STARTS = _alone("lsuv-init orthogonal-init standardize-input standardize-target weaker-weight-decay")
FIRST_BUILDS: tuple[Names, ...] = (
    ("replace-activation",),
    ("insert-normalization",),
    ("replace-activation", "insert-normalization"),
    ("add-residual", "insert-normalization"),
    ("pre-norm",),
    ("gated-recurrence",),
)

# The rest.
STARTS = _alone(
    "orthogonal-recurrent forget-bias chrono-init he-init head-scaling residual-scaling smaller-query-key-init "
    "clip-gradient-norm warm-up decoupled-weight-decay adam-epsilon less-regularization lower-dropout"
)
BUILDS: tuple[Names, ...] = (
    ("replace-activation", "lsuv-init"),
    ("insert-normalization", "lsuv-init"),
    ("add-residual",),
    ("replace-activation", "add-residual"),
    ("replace-activation", "add-residual", "insert-normalization"),
    ("qk-norm",),
    ("residual-scaling",),
    ("batch-free-normalization",),
)


Entry = tuple[float, Plan]  # loss in units of chance

SLOW = 0.9  # a loss that stays above it has not begun to fall
CLEAR = 0.05  # of chance: a gain that is worth another treatment
RATES = (0.1, 10.0, 0.01, 100.0, 0.3, 3.0, 1e-3, 1e3)  # factors on the user's rate
NEARBY = (1.0, 0.1, 10.0)  # on the best one so far
EARLY_RUNGS = (0.2, 0.5)  # of the steps,
LATE_RUNGS = (0.5, 1.0)  # of a regimen, whose rate may warm up,
SURVIVORS = 1 / 3  # and how many go on after each
SURE = 0.3  # of chance: far enough below WELL for other orders of the samples
BEGUN, BLOWN_UP = 0.95, 1.5  # of chance: what has begun to learn, and what a rate is too high for
ALIKE = 1.5  # rates that lie closer are not both tried
CLOSE = (3.0, 10.0, 0.3)  # factors on the best rate at the end of the search
MOST_LONGER = 6  # plans that are trained for longer when none trains well
MOST_BEST = 4  # variants that are paired with each other; winners of a tournament that are tried on the second seed
REPAIRS = ("wiring", "loss", "data")  # stages whose treatments are right whatever else is done


@dataclass
class RemedySearch:
    """The best plan so far. `reference`: what the best constant prediction costs."""

    lab: RepairLab
    measurement: Measurement
    reference: float
    kept: Plan
    only_rates: bool = False
    proposed: tuple[float, ...] = ()  # rates to begin with
    best: Plan = ()
    relative: float = math.inf
    steps: int = 0  # after which the best plan trains; 0: none does
    horizon: int = 0  # steps after which the best plan was found to be the best
    finished: list[Entry] = field(default_factory=list)
    inapplicable: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Ends early when time is up, or when a plan trains well."""
        self.best, self.relative = self.kept, self.lab.relative(self.kept, self.reference)
        try:
            self.steps = steps_to_train(self.lab, self.best, self.reference)
            for plans in self._rounds():
                before = self.best
                if self.steps:
                    return
                self.tournament(plans(), LATE_RUNGS if plans in (self._regimens, self._rebuilds) else EARLY_RUNGS)
                if self.best != before and not self.steps:
                    self.steps = steps_to_train(self.lab, self.best, self.reference)
            if not self.steps and not self.only_rates:
                self._longer()
        except TimeUp:
            return

    # ------------------------------------------------------------------- rounds

    def _rounds(self) -> list[Callable[[], list[Plan]]]:
        """Attention hardly trains with SGD at any rate (Zhang et al. 2020): there the optimizer comes first."""
        if self.only_rates:
            return [self._rates]
        first = [self._optimizers, self._rates] if self.measurement.attentions else [self._rates, self._optimizers]
        return [*first, self._regimens, self._rebuilds, self._first, self._starts, self._pairs, self._builds]

    def _rates(self) -> list[Plan]:
        if not self.rate:
            return []
        # The rate that a finding proposed is not always near a good one.
        wanted = [
            *self.proposed,
            *self._usual(self.kept),
            *(start * factor for start in (self.rate, self.measurement.optimizer.lr) for factor in RATES),
        ]
        chosen = [self.rate]
        for rate in wanted:
            if all(max(rate, other) > ALIKE * min(rate, other) for other in chosen):
                chosen.append(rate)
        return [self.with_rate(self.kept, rate) for rate in chosen[1:]]

    def _optimizers(self) -> list[Plan]:
        """Another optimizer at its own usual rates."""
        if not self.lab.options.unsafe:
            return []
        return [self.with_rate(plan, rate) for plan in self.variants((ADAPTIVE,)) for rate in self._usual(plan)]

    def _usual(self, plan: Plan) -> tuple[float, ...]:
        return usual_rates(self.measurement.optimizer, plan) if self.rate else ()

    def _regimens(self) -> list[Plan]:
        return self._all_of(REGIMENS)

    def _rebuilds(self) -> list[Plan]:
        return self._all_of(REBUILDS) if self.lab.options.unsafe else []

    def _all_of(self, regimens: Iterable[Names]) -> list[Plan]:
        """Each regimen, as far as it fits, at the best rate so far and at the usual ones; it replaces everything but true repairs."""
        plans = [p for p in unique(self._what_fits(names) for names in regimens) if p != self.ground]
        return [plan for one in plans for plan in (self.at(one, 1.0), *(self.with_rate(one, rate) for rate in self._usual(one)))]

    def _what_fits(self, names: Names) -> Plan:
        plan = tuple(p for p in self.ground if p.stage in REPAIRS or p.treatment == ADAPTIVE)
        for name in names:
            plan = next((p for extra in self._proposed((name,), plan) if self._fits(p := (*plan, *extra))), plan)
        return plan

    def _fits(self, plan: Plan) -> bool:
        try:
            self.lab.treated(plan)
        except (Inapplicable, GradcheckError):
            return False
        return True

    def _first(self) -> list[Plan]:
        names = FIRST_STARTS + (FIRST_BUILDS if self.lab.options.unsafe else ())
        return [plan for one in names for plan in self.around(self.variants(one))]

    def _starts(self) -> list[Plan]:
        return [plan for names in STARTS for plan in self.around(self.variants(names))]

    def _pairs(self) -> list[Plan]:
        """The variants that did best, two at a time."""
        singles = self._extras()
        pairs = [(a, b) for a, b in combinations(singles, 2) if not {p.treatment for p in a} & {p.treatment for p in b}]
        return [plan for a, b in pairs for plan in self.around([(*self.ground, *a, *b)])]

    def _builds(self) -> list[Plan]:
        if not self.lab.options.unsafe:
            return []
        best = without_rate(self.best)
        plans = [(*best, *extra) for names in BUILDS for extra in self._proposed(names, best)]
        return [plan for one in plans for plan in self.around([one])]

    def _extras(self) -> list[Plan]:
        """What the best finished plans add to the kept ones, each once."""
        ranked = sorted(self.finished, key=lambda entry: entry[0])
        known = {p.treatment for p in self.ground}
        extras = unique(tuple(p for p in without_rate(plan) if p.treatment not in known) for _, plan in ranked)
        return [e for e in extras if e][:MOST_BEST]

    def _longer(self) -> None:
        """The best of all rounds, and the winner at other rates, in longer trainings: what is slow at first may be best in the end."""
        steps = self._steps(PATIENCE)
        self.relative = self.lab.relative(self.best, self.reference, steps)
        ranked = [plan for _, plan in sorted(self.finished, key=lambda entry: entry[0])]
        for plans in (ranked, [self.at(self.best, factor) for factor in CLOSE]):
            if not self.steps:
                self._crown(self._entries(unique(plans)[:MOST_LONGER], steps), steps)

    # ------------------------------------------------------------------- pieces

    @property
    def ground(self) -> Plan:
        """What the rounds build on: what is kept, and the optimizer of the best plan."""
        return (*self.kept, *(p for p in self.best if p.treatment == ADAPTIVE and not adapts(self.kept)))

    @property
    def rate(self) -> float:
        """That of the best plan."""
        return self.rate_of(self.best)

    def rate_of(self, plan: Plan) -> float:
        return rate_of(plan, self.measurement.optimizer)

    def at(self, plan: Plan, factor: float) -> Plan:
        """The plan with another rate than the best one's, or its own where the optimizers differ; with none, when that is the user's."""
        return self.with_rate(plan, factor * (self.rate if adapts(plan) == adapts(self.best) else self.rate_of(plan)))

    def with_rate(self, plan: Plan, rate: float) -> Plan:
        return with_rate(plan, rate, self.measurement.optimizer, self.lab.catalogue)

    def around(self, plans: Iterable[Plan]) -> list[Plan]:
        return [self.at(plan, factor) for plan in plans for factor in (NEARBY if self.rate else (1.0,))]

    def variants(self, names: Names) -> list[Plan]:
        return [(*self.ground, *extra) for extra in self._proposed(names, self.ground)]

    def _proposed(self, names: Names, onto: Plan) -> list[Plan]:
        """The fixes of each name in turn; nothing when one of them does not fit, is not allowed, or is in the plan already."""
        plans: list[Plan] = [()]
        for name in names:
            treatment = self.lab.catalogue.get(name)
            if treatment is None or treatment.apply is None or name in {p.treatment for p in onto}:
                return []
            options = allowed(treatment.propose(None, self.measurement), self.lab.options.unsafe)
            plans = [(*plan, option) for plan in plans for option in options]
        return plans

    def tournament(self, plans: Sequence[Plan], early: Sequence[float] = EARLY_RUNGS) -> None:
        """Trains every plan for a few steps, the better ones for more. The winner becomes the best plan when it is clearly better."""
        alive, entries, steps = unique(plans), [], 0
        for rung in early:
            alive = self._survivors(self._entries(alive, self._steps(rung)))
        for rung in (1, PATIENCE):
            steps = self._steps(rung)
            entries = self._entries(alive, steps)
            if begun(entries):
                break
        self.finished += entries
        self._crown(entries, steps)

    def _steps(self, rung: float) -> int:
        return max(1, round(rung * self.lab.options.steps))

    def _entries(self, plans: Iterable[Plan], steps: int) -> list[Entry]:
        found = [(relative, plan) for plan in plans if (relative := self._relative(plan, steps)) is not None]
        return sorted(found, key=lambda entry: entry[0])

    def _survivors(self, entries: list[Entry]) -> list[Plan]:
        fewest = 2 if begun(entries) or self.measurement.optimizer.adaptive else 3
        better = survivors(self._promising(entries), len(entries), SURVIVORS, fewest)
        alive = [plan for relative, plan in better if math.isfinite(relative)]
        for _, plan in entries:
            if plan not in alive:
                self.lab.forget(plan)
        return alive

    def _promising(self, entries: list[Entry]) -> list[Entry]:
        """Sorted by their loss; while none has begun to learn, in turn by the loss, by how usual the rate is, and by how high it is.

        On a plateau what does not move at all has the lowest loss, and what is lowest is chance. What blows up does not go on. Tiny
        gradients may ask for rates of any height, but not where the optimizer divides by them.
        """
        if begun(entries):
            return entries
        sane = [e for e in entries if e[0] < BLOWN_UP]
        ranked = [(rank, entry) for entry in sane if (rank := self._rank(entry[1])) is not None]
        common = [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]
        bold = [] if self.measurement.optimizer.adaptive else sorted(sane, key=lambda entry: -self.rate_of(entry[1]))
        return unique_entries(entry for three in zip_longest(entries, common, bold) for entry in three if entry is not None)

    def _rank(self, plan: Plan) -> int | None:
        """Rank of its rate by how usual it is; 0 is the most usual."""
        usual, rate = [float(f"{rate:.2g}") for rate in self._usual(plan)], self.rate_of(plan)
        return usual.index(rate) if rate in usual else None

    def _relative(self, plan: Plan, steps: int) -> float | None:
        try:
            return self.lab.train(plan, steps).relative(self.reference)
        except (Inapplicable, GradcheckError) as error:
            if plan:
                self.inapplicable[plan[-1].treatment] = str(error)
            return None

    def _crown(self, entries: Sequence[Entry], steps: int) -> None:
        """The best, when it is clearly better than what was; of those that train well first the safe ones, with few treatments."""
        well = sorted((e for e in entries if e[0] <= WELL), key=_preference)
        for _, plan in unique_entries([*well, *entries])[:MOST_BEST]:
            relative = self.lab.relative(plan, self.reference, steps)
            if math.isfinite(relative) and relative < self.relative - CLEAR:
                self.relative, self.best, self.horizon = relative, plan, steps
            if self.relative <= WELL:
                self.steps = steps
                return


def _preference(entry: Entry) -> tuple[bool, bool, int]:
    """Prefers plans that keep the architecture, train reliably, and have few remedies."""
    relative, plan = entry
    return any(p.applicability != "safe" for p in plan), relative > SURE, len(plan)


def steps_to_train(lab: RepairLab, plan: Plan, reference: float) -> int:
    """After how many steps the plan has brought the loss well below chance; 0 when it has not. One that has begun to is given more."""
    steps = lab.options.steps
    relative = lab.relative(plan, reference)
    if WELL < relative < BEGUN:
        steps *= PATIENCE
        relative = lab.relative(plan, reference, steps)
    return steps if relative <= WELL else 0


def begun(entries: Sequence[Entry]) -> bool:
    """Whether the first one, which is the best, has begun to learn. Of none there is nothing to wait for."""
    return not entries or entries[0][0] < BEGUN


def unique_entries(entries: Iterable[Entry]) -> list[Entry]:
    return list({signature(plan): (relative, plan) for relative, plan in entries}.values())


def unique(plans: Iterable[Plan]) -> list[Plan]:
    return list({signature(plan): plan for plan in plans}.values())
