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
from itertools import combinations

from gradcheck.errors import GradcheckError
from gradcheck.fixing.performance import WELL
from gradcheck.fixing.plan import allowed
from gradcheck.fixing.ward import Plan, TimeUp, Ward, signature
from gradcheck.nouns.measurement import Measurement
from gradcheck.nouns.treatment import Prescription
from gradcheck.remedies.protocol import Inapplicable

Names = tuple[str, ...]

SLOW = 0.9  # a loss that stays above it has not begun to fall
PATIENCE = 3  # times the steps, for a training that falls slowly
CLEAR = 0.05  # of chance: a gain that is worth another treatment
RATES = (0.1, 10.0, 0.01, 100.0, 0.3, 3.0, 1e-3, 1e3)  # factors on the user's rate
NEARBY = (1.0, 0.1, 10.0)  # on the best one so far
RUNGS = (0.2, 0.5, 1.0)  # of the steps,
SURVIVORS = 1 / 3  # and how many go on after each
LOWER, RAISE = "lower-learning-rate", "raise-learning-rate"

# What made most workloads of benchmarks/repair.py train that no rate did (seeds below 1000), and the rest.
FIRST_STARTS: tuple[Names, ...] = (
    ("lsuv-init",),
    ("orthogonal-init",),
    ("standardize-input",),
    ("standardize-target",),
    ("weaker-weight-decay",),
)
FIRST_BUILDS: tuple[Names, ...] = (
    ("replace-activation",),
    ("insert-normalization",),
    ("replace-activation", "insert-normalization"),
    ("add-residual", "insert-normalization"),
    ("pre-norm",),
)
STARTS: tuple[Names, ...] = (
    ("orthogonal-recurrent",),
    ("forget-bias",),
    ("chrono-init",),
    ("he-init",),
    ("head-scaling",),
    ("residual-scaling",),
    ("smaller-query-key-init",),
    ("clip-gradient-norm",),
    ("warm-up",),
    ("decoupled-weight-decay",),
    ("adam-epsilon",),
    ("less-regularization",),
    ("lower-dropout",),
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
MOST_BEST = 4  # variants that are paired with each other; winners of a tournament that are tried on the second seed


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
    finished: list[tuple[float, Plan]] = field(default_factory=list)
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
                if self.best != before:
                    self.steps = steps_to_train(self.ward, self.best, self.reference)
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

    # ------------------------------------------------------------------- pieces

    @property
    def rate(self) -> float:
        """That of the best plan."""
        chosen = [float(p.settings["lr"]) for p in self.best if p.treatment in (LOWER, RAISE)]
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
        alive = unique(plans)
        for rung in RUNGS:
            steps = max(1, round(rung * self.ward.terms.steps))
            entries = [(relative, plan) for plan in alive if (relative := self._relative(plan, steps)) is not None]
            entries.sort(key=lambda entry: entry[0])
            if rung == RUNGS[-1]:
                self.finished += entries
                self._crown(entries)
                return
            count = max(2, math.ceil(SURVIVORS * len(entries)))
            alive = [plan for relative, plan in entries[:count] if math.isfinite(relative)]
            for _, plan in entries[count:]:
                self.ward.forget(plan)

    def _relative(self, plan: Plan, steps: int) -> float | None:
        try:
            return self.ward.train(plan, steps).relative(self.reference)
        except (Inapplicable, GradcheckError) as error:
            if plan:
                self.inapplicable[plan[-1].treatment] = str(error)
            return None

    def _crown(self, entries: Sequence[tuple[float, Plan]]) -> None:
        """The best, when it is clearly better than what was; a safe one that trains well goes before one that is not safe."""
        safe = [e for e in entries if e[0] <= WELL and all(p.applicability == "safe" for p in e[1])]
        for _, plan in unique_entries([*safe, *entries])[:MOST_BEST]:
            relative = self.ward.relative(plan, self.reference)
            if math.isfinite(relative) and relative < self.relative - CLEAR:
                self.relative, self.best = relative, plan
            if self.relative <= WELL:
                return


def steps_to_train(ward: Ward, plan: Plan, reference: float) -> int:
    """After how many steps the plan has brought the loss well below chance; 0 when it has not. One on its way there is given more."""
    steps = ward.terms.steps
    relative = ward.relative(plan, reference)
    if WELL < relative <= SLOW:
        steps *= PATIENCE
        relative = ward.relative(plan, reference, steps)
    return steps if relative <= WELL else 0


def without_rate(plan: Iterable[Prescription]) -> Plan:
    return tuple(p for p in plan if p.treatment not in (LOWER, RAISE))


def unique_entries(entries: Iterable[tuple[float, Plan]]) -> list[tuple[float, Plan]]:
    return list({signature(plan): (relative, plan) for relative, plan in entries}.values())


def unique(plans: Iterable[Plan]) -> list[Plan]:
    return list({signature(plan): plan for plan in plans}.values())
