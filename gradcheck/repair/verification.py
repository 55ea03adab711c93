"""What was kept is verified: against the untreated model, and each remedy against the plan without it, on seeds that chose nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from gradcheck.errors import GradcheckError
from gradcheck.repair.lab import Plan, TimeUp
from gradcheck.repair.rescan import WELL, changes, compare, severities, worsened
from gradcheck.repair.search import CLEAR, SLOW
from gradcheck.repair.session import WORSE, RepairSession
from gradcheck.training.result import Result
from gradcheck.types.fix import Effect, Fix, Outcome, OutcomeStatus, Proof
from gradcheck.types.report import Report
from gradcheck.workload.treated import Inapplicable

MORE_SEEDS = 2  # if three pairs show a gain but do not rule out noise,
SECOND_LOOK = 0.975  # with an interval that corrects for looking twice

NO_HELP = "on fresh seeds it helps no more than chance would"
NO_TIME = "there was time for only {done} of {all} pairs of trainings on fresh seeds, which proves nothing; raise --budget"
NO_RESCAN = "the training is no better with it, and there was no time to see whether its findings are gone; raise --budget"


@dataclass(frozen=True)
class Verified:
    """What stays of a session."""

    plan: Plan
    outcomes: tuple[Outcome, ...]
    proof: Proof | None
    before: Report
    after: Report | None  # a scan of the treated workload


def verify(session: RepairSession) -> Verified:
    """Drops fixes that do not help on fresh seeds until the rest does, or nothing is left."""
    lab = session.lab
    lab.share = 1.0
    base: list[Result] = []
    while session.kept:
        fresh = _pairs(session, session.kept, base, lab.options.seeds)
        pairs = fresh or [(lab.known(()), lab.known(session.kept))]  # what the search trained: it proves nothing
        base = [b for b, _ in pairs]
        treated = [t for _, t in pairs]
        after = _after(session)
        gone, new = _codes(session.base, after)
        whole = compare(base, treated)
        if not gone and not new and len(fresh) == lab.options.seeds and _undecided(session, whole, fresh):
            fresh = _pairs(session, session.kept, base, lab.options.seeds + MORE_SEEDS)
            base, treated = [b for b, _ in fresh], [t for _, t in fresh]
            whole = compare(base, treated, SECOND_LOOK)
        alone = len(session.kept) == 1
        single = {id(p): (whole, base) if alone else _without(session, p, treated) for p in session.kept}
        spare = [p for p in session.kept if not alone and not p.findings and _dispensable(session, *single[id(p)], treated)]
        doubt = _doubt(session, after, len(fresh))
        rescued = _rescued(session, fresh)
        helps = rescued or _helps(session, whole)
        if rescued and after is not None:  # a warning about a training that now works is reported, not treated
            new = tuple(code for code in new if severities(after)[code] == "error")
        refuted = _refuted(session, whole, helps, gone, new, {k: v[0] for k, v in single.items()}, spare, doubt)
        if not refuted:
            left = tuple(severities(after)) if after is not None else tuple(severities(session.base))
            proof = Proof(whole, tuple(r.run for r in base), tuple(r.run for r in treated), gone, left)
            kept = [_kept(session, p, gone, after, *single[id(p)], treated) for p in session.kept]
            kept = _told_once(kept)
            return Verified(session.kept, (*kept, *session.outcomes.values()), proof, session.base, after)
        for fix, status, reason in refuted:
            session.drop(fix, status, reason)
    return Verified((), tuple(session.outcomes.values()), None, session.base, None)


def _pairs(session: RepairSession, plan: Plan, base: Sequence[Result], seeds: int) -> list[tuple[Result, Result]]:
    """(untreated, treated) for each of so many verification seeds, as far as time allows."""
    lab, found = session.lab, []
    for i in range(max(seeds, len(base))):
        try:
            untreated = base[i] if i < len(base) else lab.train((), session.steps, lab.proof_seed + i)
            found.append((untreated, lab.train(plan, session.steps, lab.proof_seed + i)))
        except TimeUp:
            break
    return found


def _without(session: RepairSession, fix: Fix, treated: Sequence[Result]) -> tuple[Effect | None, list[Result]]:
    """The effect of one fix with the others in place; None when there is no time for it, or the others need it."""
    rest = tuple(p for p in session.kept if p is not fix)
    try:
        runs = [session.lab.train(rest, session.steps, session.lab.proof_seed + i) for i in range(len(treated))]
    except (TimeUp, Inapplicable, GradcheckError):
        return None, []
    return compare(runs, treated), runs


def _dispensable(session: RepairSession, own: Effect | None, without: Sequence[Result], treated: Sequence[Result]) -> bool:
    """Whether no finding asked for it, it is not sure to help, and the model trains without it, or no worse."""
    if own is None or _helps(session, own):
        return False
    now, then = (median(r.relative(session.reference) for r in runs) for runs in (treated, without))
    return then <= WELL or then - now < CLEAR


def _undecided(session: RepairSession, effect: Effect, pairs: Sequence[tuple[Result, Result]]) -> bool:
    """Whether the training is clearly better in the middle, and noise has not been ruled out."""
    return not _helps(session, effect) and not _rescued(session, pairs) and -harm(effect) > _limit(session, effect, CLEAR)


def _limit(session: RepairSession, effect: Effect, share: float = WORSE) -> float:
    return share * (session.reference if effect.metric == "training loss" else 1.0)


def _helps(session: RepairSession, effect: Effect) -> bool:
    return effect.better and -harm(effect) > _limit(session, effect)


def _rescued(session: RepairSession, pairs: Sequence[tuple[Result, Result]]) -> bool:
    """Whether it trains well on every fresh seed that there was time for, and far better than any untreated run: noise of a few runs
    does not reach so far, though an interval that has to allow for its tails may."""
    untreated = [a.relative(session.reference) for a, _ in pairs]
    treated = [b.relative(session.reference) for _, b in pairs]
    return bool(pairs) and max(treated) <= WELL and min(untreated) - max(treated) >= SLOW - WELL


def _doubt(session: RepairSession, after: Report | None, pairs: int) -> str:
    if pairs < session.lab.options.seeds:
        return NO_TIME.format(done=pairs, all=session.lab.options.seeds)
    return NO_HELP if after is not None else NO_RESCAN


def _after(session: RepairSession) -> Report | None:
    try:
        return session.lab.rescan(session.kept)
    except TimeUp:
        return None


def _codes(base: Report, after: Report | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(gone, new or worse); nothing is known to be gone when there was no time to measure again."""
    if after is None:
        return (), ()
    before, now = severities(base), severities(after)
    return tuple(code for code in before if code not in now), worsened(before, now)


def _refuted(
    session: RepairSession,
    whole: Effect,
    helps: bool,
    gone: Sequence[str],
    new: Sequence[str],
    single: dict[int, Effect | None],
    spare: Sequence[Fix],
    doubt: str,
) -> list[tuple[Fix, OutcomeStatus, str]]:
    """Fixes to drop: one that does harm, else all when together they neither help nor cure, with the `doubt`."""
    limit = _limit(session, whole)
    for fix in reversed(session.kept):
        own = single[id(fix)]
        if own is not None and harm(own) > limit and not own.better:
            return [(fix, "worse", f"on fresh seeds the {own.metric} is worse with it")]
        if own is not None and fix in spare:
            return [(fix, "not-needed", f"on fresh seeds the {own.metric} is no better with it")]
    if new and len(session.kept) > 1:
        return [(session.kept[-1], "worse", f"with it comes {', '.join(new)}")]
    if new:
        return [(p, "worse", f"with it comes {', '.join(new)}") for p in session.kept]
    if harm(whole) > limit:
        return [(p, "worse", f"on fresh seeds the {whole.metric} is worse") for p in session.kept]
    if not gone and not helps:
        return [(p, "not-verified", doubt) for p in session.kept]
    return []


def _told_once(kept: Sequence[Outcome]) -> list[Outcome]:
    """A statistic is shown only with the first treatment that changed it."""
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
    session: RepairSession,
    fix: Fix,
    gone: Sequence[str],
    after: Report | None,
    effect: Effect | None,
    without: Sequence[Result],
    treated: Sequence[Result],
) -> Outcome:
    aimed = {code for p in session.kept for code in p.findings}
    mine = fix.findings or tuple(code for code in gone if code not in aimed)
    cured = tuple(code for code in gone if code in mine)
    return Outcome(
        replace(fix, findings=mine),
        "kept",
        "" if effect is not None else "there was no time to train without it",
        changes(session.base, after, mine, session.lab.settings) if after is not None else (),
        cured,
        effect=effect,
        base=tuple(r.run for r in without),
        treated=tuple(r.run for r in treated) if without else (),
    )
