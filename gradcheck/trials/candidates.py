"""What enters a trial: the remedies that are named, or those that the scan's findings propose and those that are usual for the task."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gradcheck.errors import ConfigError
from gradcheck.judge.select import suggestion
from gradcheck.remedies.catalogue import ADVICE_ONLY, CATALOGUE
from gradcheck.remedies.definition import RemedyDefinition, Strength
from gradcheck.trials.standings import Candidate
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report
from gradcheck.types.trial import Task

# What enters for a finding beside the remedies that it names: changes of the loss, which only trainings beside each other can prove.
ALSO_FOR = {"ACT004": "stop-gradient", "MOE001": "load-balancing", "LOSS010": "kl-weight"}
MOST = 18  # remedies by default; the findings' come first
UNFIT = "it does not fit this model, its data or its optimizer"
# Penalties at the start over the loss: the best strength of a linear model and that of a net differ by a factor of a hundred.
PENALTIES = ("l1", "l2", "elastic-net")
# The first ones enter at once; later those next to the best of them.
FIRST_STRENGTHS, OTHER_STRENGTHS, STRONGEST = (0.3, 0.03, 3.0), (0.1, 1.0, 0.01, 8.0, 0.003, 20.0), 30.0
LEAST_FACTOR, LARGEST_FACTOR = 2.0, 10.0  # between the strengths of a remedy that enter

# What the literature recommends against overfitting and unstable training, for any task.
USUAL = (
    "l2",
    "l1",
    "elastic-net",
    "dropout",
    "early-stopping",
    "clip-gradient-norm",
    "lower-learning-rate",
    "warm-up",
    "batch-normalization",
    "layer-normalization",
    "replace-activation",
    "orthogonal-init",
    "smaller-network",
)
USUAL_FOR: dict[Task, tuple[str, ...]] = {
    "classification": ("label-smoothing", "mixup", "random-shift"),
    "binary": ("label-smoothing",),
    "language": ("label-smoothing", "token-dropout"),
    "regression": ("standardize-target", "standardize-input", "input-noise"),
    "multilabel": (),
    "other": (),
}


def entries(report: Report, task: Task, remedies: Sequence[str] = (), *, variants: bool = True) -> list[Candidate]:
    """One candidate for each remedy, or three with `variants` where it has a strength. Raises ConfigError for unknown names."""
    m = report.measurement
    proposed = findings_of(report.findings)
    named = bool(remedies)
    names = list(dict.fromkeys(remedies)) if named else usual(proposed, task)
    found: list[Candidate] = []
    seen: list[tuple[object, ...]] = []
    for name in names:
        treatment = treatment_named(name)
        fix = best_fix(treatment, proposed.get(name), m)
        if fix is not None and not named:  # two names for the same thing need only one entry
            same = (fix.stage, fix.settings, fix.layers)
            if fix.settings and same in seen:
                continue
            seen.append(same)
        if fix is not None:
            strengths = versions(treatment, fix, m) if variants else [fix]
            found += [Candidate(name, title(treatment, p), (p,), variant=i >= entering(name)) for i, p in enumerate(strengths)]
        elif named:
            found.append(Candidate(name, treatment.title, failure=UNFIT, inapplicable=True))
    return found


def findings_of(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Remedy -> the first finding that proposes it; findings come worst first."""
    found: dict[str, Finding] = {}
    for finding in findings:
        also = [ALSO_FOR[finding.code]] if finding.code in ALSO_FOR else []
        for name in (*also, *(r.name for r in finding.remedies)):
            found.setdefault(name, finding)
    return found


def usual(proposed: dict[str, Finding], task: Task) -> list[str]:
    """Leaves out remedies that differ only by name, and those that cannot be applied to a copy."""
    names = dict.fromkeys((*proposed, *USUAL, *USUAL_FOR[task]))
    return [n for n in names if n in CATALOGUE and CATALOGUE[n].apply is not None][:MOST]


def treatment_named(name: str) -> RemedyDefinition:
    if name in CATALOGUE and CATALOGUE[name].apply is not None:
        return CATALOGUE[name]
    if name in CATALOGUE or name in ADVICE_ONLY:
        raise ConfigError(f"{name} is advice: it cannot be tried on a copy", hint="name another remedy")
    known = [n for n, t in CATALOGUE.items() if t.apply is not None]
    raise ConfigError(f"unknown remedy {name!r}", hint=suggestion(name, known) + f"remedies: {', '.join(sorted(known))}")


def best_fix(treatment: RemedyDefinition, finding: Finding | None, m: Measurement) -> Fix | None:
    """The best of its fixes, for the finding if one proposes it."""
    options = treatment.propose(finding, m) if finding is not None else []
    options = options or treatment.propose(None, m)
    return options[0] if options else None


def versions(treatment: RemedyDefinition, fix: Fix, m: Measurement) -> list[Fix]:
    """The fix, then other strengths of it, if it has any. Penalties enter at a grid of their own."""
    if not treatment.strengths:
        return [fix]
    strength = within(treatment, m)[0]
    if treatment.name in PENALTIES:
        return [treatment.at(fix, **{strength.setting: value}) for value in (*FIRST_STRENGTHS, *OTHER_STRENGTHS)]
    now = float(fix.settings.get(strength.setting, strength.default))
    values = neighbours(strength, now, both=treatment.stage != "clipping")
    return [fix, *(treatment.at(fix, **{strength.setting: value}) for value in values)]


def entering(name: str) -> int:
    """How many strengths of a remedy are in the first round; the others are tried when it is among the better half."""
    return len(FIRST_STRENGTHS) if name in PENALTIES else 3 if name == "clip-gradient-norm" else 1


def within(treatment: RemedyDefinition, m: Measurement) -> tuple[Strength, ...]:
    """The strengths of a treatment for this model: a lower rate is below the present one, a higher one above it; see PENALTIES."""
    rate = m.optimizer.lr
    if treatment.name == "lower-learning-rate" and rate:
        return tuple(replace(s, high=min(s.high, rate / 1.5)) if s.setting == "lr" else s for s in treatment.strengths)
    if treatment.name == "raise-learning-rate" and rate:
        return tuple(replace(s, low=max(s.low, rate * 1.5)) if s.setting == "lr" else s for s in treatment.strengths)
    if treatment.name in PENALTIES:
        return tuple(replace(s, high=STRONGEST) if s.setting == "strength" else s for s in treatment.strengths)
    return treatment.strengths


def neighbours(strength: Strength, now: float, *, both: bool = True) -> list[float]:
    """A lower and a higher value, within the range of the strength; or two lower ones: a proposed threshold is high enough."""
    if strength.log and now > 0 and strength.low > 0:
        factor = min(LARGEST_FACTOR, max(LEAST_FACTOR, (strength.high / strength.low) ** (1 / 6)))
        around = [now / factor, now * factor if both else now / factor**2]
    else:
        step = (strength.high - strength.low) / 4
        around = [now - step, now + step]
    low, high = min(strength.low, now), max(strength.high, now)
    rounded = [float(f"{min(high, max(low, value)):.2g}") for value in around]
    return [value for value in dict.fromkeys(rounded) if value != now]


def scheduled(candidate: Candidate, steps: int) -> Candidate:
    """With schedules that end with the training, at the length of the trial's runs."""
    share = {"cosine-schedule": 1.0, "step-schedule": 1 / 3}
    fitted = tuple(
        CATALOGUE[p.treatment].at(p, steps=max(1, round(steps * share[p.treatment]))) if p.treatment in share else p
        for p in candidate.fixes
    )
    return replace(candidate, fixes=fitted) if fitted != candidate.fixes else candidate


def title(treatment: RemedyDefinition, fix: Fix) -> str:
    """`dropout 0.3`: its name, and the strength if it has one."""
    words = [f"{number}" for s in treatment.strengths if (number := shown(fix.settings.get(s.setting))) is not None]
    return " ".join([treatment.name, "/".join(words)]).strip()


def shown(value: Setting | None) -> str | None:
    return f"{value:.3g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else None
