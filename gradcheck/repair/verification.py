"""What was kept is proved: against the untreated model, and each treatment against the plan without it, on seeds that chose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from gradcheck.errors import GradcheckError
from gradcheck.repair.changes import changes
from gradcheck.repair.lab import Plan, TimeUp
from gradcheck.repair.performance import WELL, Result, compare
from gradcheck.repair.rescan import severities, worsened
from gradcheck.repair.search import CLEAR, SLOW
from gradcheck.repair.session import WORSE, RepairSession
from gradcheck.types.fix import Effect, Fix, Outcome, OutcomeStatus, Proof
from gradcheck.types.report import Report
from gradcheck.workload.treated import Inapplicable

MORE_SEEDS = 2  # where three pairs show a gain and do not rule noise out,
SECOND_LOOK = 0.975  # at an interval that makes up for looking twice

NO_HELP = "on fresh seeds it helps no more than chance would"
NO_TIME = "there was time for {done} of {all} pairs of trainings on fresh seeds, which prove nothing; a larger --budget gives it"
NO_EXAM = "the training is no better with it, and there was no time to see whether its findings are gone; a larger --budget gives it"


@dataclass(frozen=True)
class Verdict:
    """What stays of a therapy."""

    plan: Plan
    outcomes: tuple[Outcome, ...]
    proof: Proof | None
    before: Report
    after: Report | None  # a scan of the treated workload


def verify(therapy: RepairSession) -> Verdict:
    """Drops what does not hold on fresh seeds until the rest does, or nothing is left."""
    ward = therapy.ward
    ward.share = 1.0
    base: list[Result] = []
    while therapy.kept:
        fresh = _pairs(therapy, therapy.kept, base, ward.terms.seeds)
        pairs = fresh or [(ward.known(()), ward.known(therapy.kept))]  # what the search trained: it proves nothing
        base = [b for b, _ in pairs]
        treated = [t for _, t in pairs]
        after = _after(therapy)
        gone, new = _codes(therapy.base, after)
        whole = compare(base, treated)
        if not gone and not new and len(fresh) == ward.terms.seeds and _undecided(therapy, whole, fresh):
            fresh = _pairs(therapy, therapy.kept, base, ward.terms.seeds + MORE_SEEDS)
            base, treated = [b for b, _ in fresh], [t for _, t in fresh]
            whole = compare(base, treated, SECOND_LOOK)
        alone = len(therapy.kept) == 1
        single = {id(p): (whole, base) if alone else _without(therapy, p, treated) for p in therapy.kept}
        spare = [p for p in therapy.kept if not alone and not p.findings and _dispensable(therapy, *single[id(p)], treated)]
        doubt = _doubt(therapy, after, len(fresh))
        rescued = _rescued(therapy, fresh)
        helps = rescued or _helps(therapy, whole)
        if rescued and after is not None:  # a warning about a training that now works is left to be told
            new = tuple(code for code in new if severities(after)[code] == "error")
        refuted = _refuted(therapy, whole, helps, gone, new, {k: v[0] for k, v in single.items()}, spare, doubt)
        if not refuted:
            left = tuple(severities(after)) if after is not None else tuple(severities(therapy.base))
            proof = Proof(whole, tuple(r.run for r in base), tuple(r.run for r in treated), gone, left)
            kept = [_kept(therapy, p, gone, after, *single[id(p)], treated) for p in therapy.kept]
            kept = _told_once(kept)
            return Verdict(therapy.kept, (*kept, *therapy.outcomes.values()), proof, therapy.base, after)
        for prescription, status, reason in refuted:
            therapy.drop(prescription, status, reason)
    return Verdict((), tuple(therapy.outcomes.values()), None, therapy.base, None)


def _pairs(therapy: RepairSession, plan: Plan, base: Sequence[Result], seeds: int) -> list[tuple[Result, Result]]:
    """(untreated, treated) for each of so many seeds of the proof that there is time for."""
    ward, found = therapy.ward, []
    for i in range(max(seeds, len(base))):
        try:
            untreated = base[i] if i < len(base) else ward.train((), therapy.steps, ward.proof_seed + i)
            found.append((untreated, ward.train(plan, therapy.steps, ward.proof_seed + i)))
        except TimeUp:
            break
    return found


def _without(therapy: RepairSession, prescription: Fix, treated: Sequence[Result]) -> tuple[Effect | None, list[Result]]:
    """The effect of one treatment, the others in force; None when there is no time for it, or they do not go without it."""
    rest = tuple(p for p in therapy.kept if p is not prescription)
    try:
        runs = [therapy.ward.train(rest, therapy.steps, therapy.ward.proof_seed + i) for i in range(len(treated))]
    except (TimeUp, Inapplicable, GradcheckError):
        return None, []
    return compare(runs, treated), runs


def _dispensable(therapy: RepairSession, own: Effect | None, without: Sequence[Result], treated: Sequence[Result]) -> bool:
    """Whether what no finding asked for is not sure to help, and the model trains without it, or no worse."""
    if own is None or _helps(therapy, own):
        return False
    now, then = (median(r.relative(therapy.reference) for r in runs) for runs in (treated, without))
    return then <= WELL or then - now < CLEAR


def _undecided(therapy: RepairSession, effect: Effect, pairs: Sequence[tuple[Result, Result]]) -> bool:
    """Whether the training is clearly better in the middle, and noise has not been ruled out."""
    return not _helps(therapy, effect) and not _rescued(therapy, pairs) and -harm(effect) > _limit(therapy, effect, CLEAR)


def _limit(therapy: RepairSession, effect: Effect, share: float = WORSE) -> float:
    return share * (therapy.reference if effect.metric == "training loss" else 1.0)


def _helps(therapy: RepairSession, effect: Effect) -> bool:
    return effect.better and -harm(effect) > _limit(therapy, effect)


def _rescued(therapy: RepairSession, pairs: Sequence[tuple[Result, Result]]) -> bool:
    """Whether it trains well on every fresh seed that there was time for, and far better than any untreated run: noise of a few runs
    does not reach so far, though an interval that has to allow for its tails may."""
    untreated = [a.relative(therapy.reference) for a, _ in pairs]
    treated = [b.relative(therapy.reference) for _, b in pairs]
    return bool(pairs) and max(treated) <= WELL and min(untreated) - max(treated) >= SLOW - WELL


def _doubt(therapy: RepairSession, after: Report | None, pairs: int) -> str:
    if pairs < therapy.ward.terms.seeds:
        return NO_TIME.format(done=pairs, all=therapy.ward.terms.seeds)
    return NO_HELP if after is not None else NO_EXAM


def _after(therapy: RepairSession) -> Report | None:
    try:
        return therapy.ward.exam(therapy.kept)
    except TimeUp:
        return None


def _codes(base: Report, after: Report | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(gone, new or worse); nothing is known to be gone when there was no time to measure again."""
    if after is None:
        return (), ()
    before, now = severities(base), severities(after)
    return tuple(code for code in before if code not in now), worsened(before, now)


def _refuted(
    therapy: RepairSession,
    whole: Effect,
    helps: bool,
    gone: Sequence[str],
    new: Sequence[str],
    single: dict[int, Effect | None],
    spare: Sequence[Fix],
    doubt: str,
) -> list[tuple[Fix, OutcomeStatus, str]]:
    """Treatments that have to go: one that does harm, else all of them when together they neither help nor cure, with the `doubt`."""
    limit = _limit(therapy, whole)
    for prescription in reversed(therapy.kept):
        own = single[id(prescription)]
        if own is not None and harm(own) > limit and not own.better:
            return [(prescription, "worse", f"on fresh seeds the {own.metric} is worse with it")]
        if own is not None and prescription in spare:
            return [(prescription, "not-needed", f"on fresh seeds the {own.metric} is no better with it")]
    if new and len(therapy.kept) > 1:
        return [(therapy.kept[-1], "worse", f"with it comes {', '.join(new)}")]
    if new:
        return [(p, "worse", f"with it comes {', '.join(new)}") for p in therapy.kept]
    if harm(whole) > limit:
        return [(p, "worse", f"on fresh seeds the {whole.metric} is worse") for p in therapy.kept]
    if not gone and not helps:
        return [(p, "not-verified", doubt) for p in therapy.kept]
    return []


def _told_once(kept: Sequence[Outcome]) -> list[Outcome]:
    """A statistic is shown with the first treatment that changed it."""
    told: set[tuple[str, str]] = set()
    done = []
    for outcome in kept:
        fresh = tuple(c for c in outcome.changes if (c.code, c.quantity) not in told)
        told |= {(c.code, c.quantity) for c in fresh}
        done.append(replace(outcome, changes=fresh))
    return done


def harm(effect: Effect) -> float:
    """By how much it got worse; negative when it got better."""
    return effect.difference if effect.lower_is_better else -effect.difference


def _kept(
    therapy: RepairSession,
    prescription: Fix,
    gone: Sequence[str],
    after: Report | None,
    effect: Effect | None,
    without: Sequence[Result],
    treated: Sequence[Result],
) -> Outcome:
    aimed = {code for p in therapy.kept for code in p.findings}
    mine = prescription.findings or tuple(code for code in gone if code not in aimed)
    cured = tuple(code for code in gone if code in mine)
    return Outcome(
        replace(prescription, findings=mine),
        "kept",
        "" if effect is not None else "there was no time to train without it",
        changes(therapy.base, after, mine, therapy.ward.settings) if after is not None else (),
        cured,
        effect=effect,
        base=tuple(r.run for r in without),
        treated=tuple(r.run for r in treated) if without else (),
    )
