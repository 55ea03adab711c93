"""Treatments that no finding asks for: searched when the findings' own do not make the model train.

Rates first, since a wrong rate is the most frequent illness and hides what else would help; then what helps most often of
initialisation, data and, where that is allowed, architecture; then the rest of each, alone and in pairs; all at the rates around the
best one so far. Every round is a tournament by successive halving (Jamieson and Talwalkar 2016) on one seed; what trains well there has
to do so on a second one, and has yet to be proved on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, zip_longest

from gradcheck.errors import GradcheckError
from gradcheck.fixing.candidates import BUILDS, FIRST_BUILDS, FIRST_STARTS, STARTS, Names
from gradcheck.fixing.performance import WELL
from gradcheck.fixing.plan import allowed
from gradcheck.fixing.ward import Plan, TimeUp, Ward, signature
from gradcheck.nouns.measurement import Measurement
from gradcheck.nouns.treatment import Prescription
from gradcheck.remedies.protocol import Inapplicable

Entry = tuple[float, Plan]  # loss in units of chance

SLOW = 0.9  # a loss that stays above it has not begun to fall
PATIENCE = 3  # times the steps, for a training that falls slowly
CLEAR = 0.05  # of chance: a gain that is worth another treatment
RATES = (0.1, 10.0, 0.01, 100.0, 0.3, 3.0, 1e-3, 1e3)  # factors on the user's rate
NEARBY = (1.0, 0.1, 10.0)  # on the best one so far
EARLY_RUNGS = (0.2, 0.5)  # of the steps,
SURVIVORS = 1 / 3  # and how many go on after each
BEGUN, BLOWN_UP = 0.95, 1.5  # of chance: what has begun to learn, and what a rate is too high for
CLOSE = (3.0, 10.0, 0.3)  # the same, at the end of the search
MOST_LONGER = 6  # plans that are trained for longer when none trains well
MOST_BEST = 4  # variants that are paired with each other; winners of a tournament that are tried on the second seed
LOWER, RAISE = "lower-learning-rate", "raise-learning-rate"


@dataclass
class Search:
    """The best plan so far. `reference`: what the best constant prediction costs."""

    ward: Ward
    measurement: Measurement
    reference: float
    kept: Plan
    best: Plan = ()
    relative: float = math.inf
    steps: int = 0  # after which the best plan trains; 0: none does
    horizon: int = 0  # steps after which the best plan was found to be the best
    finished: list[Entry] = field(default_factory=list)
    inapplicable: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Ends early when time is up, or when a plan trains well."""
        self.best, self.relative = self.kept, self.ward.relative(self.kept, self.reference)
        try:
            self.steps = steps_to_train(self.ward, self.best, self.reference)
            for plans in (self._rates, self._first, self._starts, self._pairs, self._builds):
                before = self.best
                if self.steps:
                    return
                self.tournament(plans())
                if self.best != before and not self.steps:
                    self.steps = steps_to_train(self.ward, self.best, self.reference)
            if not self.steps:
                self._longer()
        except TimeUp:
            return

    # ------------------------------------------------------------------- rounds

    def _rates(self) -> list[Plan]:
        if not self.rate:
            return []
        shift = self.rate / self.measurement.optimizer.lr  # what a finding made of the rate is not always near a good one
        around = [*RATES, *((factor / shift for factor in RATES) if shift != 1 else ())]
        return [self.at(self.kept, factor) for factor in around]

    def _first(self) -> list[Plan]:
        names = FIRST_STARTS + (FIRST_BUILDS if self.ward.terms.unsafe else ())
        return [plan for one in names for plan in self.around(self.variants(one))]

    def _starts(self) -> list[Plan]:
        return [plan for names in STARTS for plan in self.around(self.variants(names))]

    def _pairs(self) -> list[Plan]:
        """The variants that did best, two at a time."""
        singles = self._extras()
        pairs = [(a, b) for a, b in combinations(singles, 2) if not {p.treatment for p in a} & {p.treatment for p in b}]
        return [plan for a, b in pairs for plan in self.around([(*self.kept, *a, *b)])]

    def _builds(self) -> list[Plan]:
        if not self.ward.terms.unsafe:
            return []
        best = without_rate(self.best)
        plans = [(*best, *extra) for names in BUILDS for extra in self._prescribed(names, best)]
        return [plan for one in plans for plan in self.around([one])]

    def _extras(self) -> list[Plan]:
        """What the best finished plans add to the kept ones, each once."""
        ranked = sorted(self.finished, key=lambda entry: entry[0])
        extras = unique(tuple(p for p in without_rate(plan) if p not in self.kept) for _, plan in ranked)
        return [e for e in extras if e][:MOST_BEST]

    def _longer(self) -> None:
        """The best of all rounds, and the winner at other rates, in longer trainings: what is slow at first may be best in the end."""
        steps = self._steps(PATIENCE)
        self.relative = self.ward.relative(self.best, self.reference, steps)
        ranked = [plan for _, plan in sorted(self.finished, key=lambda entry: entry[0])]
        for plans in (ranked, [self.at(self.best, factor) for factor in CLOSE]):
            if not self.steps:
                self._crown(self._entries(unique(plans)[:MOST_LONGER], steps), steps)

    # ------------------------------------------------------------------- pieces

    @property
    def rate(self) -> float:
        """That of the best plan."""
        return self.rate_of(self.best)

    def rate_of(self, plan: Plan) -> float:
        chosen = [float(p.settings["lr"]) for p in plan if p.treatment in (LOWER, RAISE)]
        return chosen[-1] if chosen else self.measurement.optimizer.lr

    def at(self, plan: Plan, factor: float) -> Plan:
        """The plan with another rate than the best one's; with none, when that is the user's own."""
        now, wanted = self.measurement.optimizer.lr, float(f"{self.rate * factor:.2g}")
        plan = without_rate(plan)
        if math.isclose(wanted, now, rel_tol=0.05):
            return plan
        treatment = self.ward.vocabulary[LOWER if wanted < now else RAISE]
        text = f"set the learning rate to {wanted:g} (now {now:g}): the best of those tried"
        return (*plan, treatment.prescription(text, settings={"lr": wanted}))

    def around(self, plans: Iterable[Plan]) -> list[Plan]:
        return [self.at(plan, factor) for plan in plans for factor in (NEARBY if self.rate else (1.0,))]

    def variants(self, names: Names) -> list[Plan]:
        return [(*self.kept, *extra) for extra in self._prescribed(names, self.kept)]

    def _prescribed(self, names: Names, onto: Plan) -> list[Plan]:
        """The prescriptions of each name in turn; nothing when one of them does not fit, is not allowed, or is in the plan already."""
        plans: list[Plan] = [()]
        for name in names:
            treatment = self.ward.vocabulary.get(name)
            if treatment is None or treatment.apply is None or name in {p.treatment for p in onto}:
                return []
            options = allowed(treatment.prescribe(None, self.measurement), self.ward.terms.unsafe)
            plans = [(*plan, option) for plan in plans for option in options]
        return plans

    def tournament(self, plans: Sequence[Plan]) -> None:
        """Every plan for a few steps, the better ones for more. The winner becomes the best when it clearly is."""
        alive, entries, steps = unique(plans), [], 0
        for rung in EARLY_RUNGS:
            alive = self._survivors(self._entries(alive, self._steps(rung)))
        for rung in (1, PATIENCE):
            steps = self._steps(rung)
            entries = self._entries(alive, steps)
            if begun(entries):
                break
        self.finished += entries
        self._crown(entries, steps)

    def _steps(self, rung: float) -> int:
        return max(1, round(rung * self.ward.terms.steps))

    def _entries(self, plans: Iterable[Plan], steps: int) -> list[Entry]:
        found = [(relative, plan) for plan in plans if (relative := self._relative(plan, steps)) is not None]
        return sorted(found, key=lambda entry: entry[0])

    def _survivors(self, entries: list[Entry]) -> list[Plan]:
        count = max(2, math.ceil(SURVIVORS * len(entries)))
        alive = [plan for relative, plan in self._promising(entries)[:count] if math.isfinite(relative)]
        for _, plan in entries:
            if plan not in alive:
                self.ward.forget(plan)
        return alive

    def _promising(self, entries: list[Entry]) -> list[Entry]:
        """Sorted by their loss; while none has begun to learn, every second one by its rate, the highest that does not blow up first.

        On a plateau what does not move at all has the lowest loss.
        """
        if begun(entries):
            return entries
        bold = sorted((e for e in entries if e[0] < BLOWN_UP), key=lambda entry: -self.rate_of(entry[1]))
        return unique_entries(entry for pair in zip_longest(entries, bold) for entry in pair if entry is not None)

    def _relative(self, plan: Plan, steps: int) -> float | None:
        try:
            return self.ward.train(plan, steps).relative(self.reference)
        except (Inapplicable, GradcheckError) as error:
            if plan:
                self.inapplicable[plan[-1].treatment] = str(error)
            return None

    def _crown(self, entries: Sequence[Entry], steps: int) -> None:
        """The best, when it is clearly better than what was; a safe one that trains well goes before one that is not safe."""
        safe = [e for e in entries if e[0] <= WELL and all(p.applicability == "safe" for p in e[1])]
        for _, plan in unique_entries([*safe, *entries])[:MOST_BEST]:
            relative = self.ward.relative(plan, self.reference, steps)
            if math.isfinite(relative) and relative < self.relative - CLEAR:
                self.relative, self.best, self.horizon = relative, plan, steps
            if self.relative <= WELL:
                self.steps = steps
                return


def steps_to_train(ward: Ward, plan: Plan, reference: float) -> int:
    """After how many steps the plan has brought the loss well below chance; 0 when it has not. One on its way there is given more."""
    steps = ward.terms.steps
    relative = ward.relative(plan, reference)
    if WELL < relative <= SLOW:
        steps *= PATIENCE
        relative = ward.relative(plan, reference, steps)
    return steps if relative <= WELL else 0


def begun(entries: Sequence[Entry]) -> bool:
    """Whether the first one, which is the best, has begun to learn. Of none there is nothing to wait for."""
    return not entries or entries[0][0] < BEGUN


def without_rate(plan: Iterable[Prescription]) -> Plan:
    return tuple(p for p in plan if p.treatment not in (LOWER, RAISE))


def unique_entries(entries: Iterable[Entry]) -> list[Entry]:
    return list({signature(plan): (relative, plan) for relative, plan in entries}.values())


def unique(plans: Iterable[Plan]) -> list[Plan]:
    return list({signature(plan): plan for plan in plans}.values())
