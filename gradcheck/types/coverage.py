"""How many of the applicable rules could look: whether a report is a full verdict, or one in part."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradcheck.types.finding import RuleState
from gradcheck.types.measurement import Measurement, NotMeasured

# Share of the applicable rules that may have failed to look. Of the healthy samples the one with the fewest rules has 28 that look. No
# single check of gradcheck's keeps more than 5 of them from it (18 %, REG and the recurrent rules); without the training 30 and more are.
MOST_MISSED = 0.25
LOOKED = ("passed", "finding", "suppressed")
UNRELATED = "META"  # rules about comments, assertions and the baseline say nothing about the training


@dataclass(frozen=True)
class Coverage:
    """`in_part`: too many of the applicable rules failed to look for their silence to mean anything."""

    in_part: bool
    looked: int  # rules that came to a verdict
    applicable: int  # these, and those that failed to look. Left out: what does not apply, and what was not asked for
    silent: tuple[str, ...] = ()  # names of the rules that failed to look
    reasons: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()  # what the user can do


def coverage(states: Sequence[RuleState], measurements: Sequence[Measurement]) -> Coverage:
    """A rule fails to look when what it needs could not be measured, was measured for too short a time, or when the rule crashed.

    It is no failure if the user left something out (--fast, --select), if this model has nothing to look at, or if a rule cannot tell from
    a watched run: watching sees no more.
    """
    notes = [n for m in measurements for n in m.not_measured if n.lack in ("failed", "short")]
    lacking = {n.what for n in notes}
    watched = any(m.probe.live for m in measurements)
    mine = [s for s in states if not s.code.startswith(UNRELATED)]
    missed = [s for s in mine if _failed(s, lacking, watched)]
    looked = sum(s.status in LOOKED for s in mine)
    applicable = looked + len(missed)
    told = _telling(missed, notes)
    return Coverage(
        len(missed) > MOST_MISSED * applicable,
        looked,
        applicable,
        tuple(s.name for s in missed),
        tuple(dict.fromkeys((*(n.why for n in told), *_crashes(missed)))),
        tuple(dict.fromkeys(n.remedy for n in told if n.remedy)),
    )


def _failed(state: RuleState, lacking: set[str], watched: bool) -> bool:
    if state.status != "not-measured":
        return state.status == "crashed"
    return state.lacking in lacking if state.lacking else not watched


def _telling(missed: Sequence[RuleState], notes: Sequence[NotMeasured]) -> list[NotMeasured]:
    """The notes that kept rules from looking, the one that kept the most first."""
    silenced = [s.lacking for s in missed]
    by_reason: dict[str, int] = {}
    for what, why in dict.fromkeys((n.what, n.why) for n in notes):
        by_reason[why] = by_reason.get(why, 0) + silenced.count(what)
    return sorted((n for n in notes if by_reason[n.why]), key=lambda n: -by_reason[n.why])


def _crashes(missed: Sequence[RuleState]) -> list[str]:
    names = [s.name for s in missed if s.status == "crashed"]
    return [f"{len(names)} {'rule' if len(names) == 1 else 'rules'} crashed: {', '.join(names)}"] if names else []
