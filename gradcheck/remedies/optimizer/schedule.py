"""Treatments of the rate over time: warm-up, cosine, steps."""

from gradcheck.remedies.definition import RemedyDefinition, Settings
from gradcheck.remedies.modules.hooks import RateSchedule, cosine, staircase, warming_up
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload

FEWEST_WARM, WARM_PASSES, WARM_START = 200, 10, 0.01


def propose_warm_up(finding: Finding | None, m: Measurement) -> list[Fix]:
    """2 / (1 - beta2) steps (Ma and Yarats 2021), and no more than ten passes over the data, unless these are very short."""
    beta = m.optimizer.betas[1] if len(m.optimizer.betas) > 1 and m.optimizer.betas[1] < 1 else 0.999
    steps = min(round(2 / (1 - beta)), max(FEWEST_WARM, WARM_PASSES * m.data.batches))
    settings: dict[str, Setting] = {"steps": steps, "start": WARM_START}
    return [WARM_UP.fix(_warm_words(settings), finding, settings=settings)] if m.optimizer.lr else []


def _warm_words(s: Settings) -> str:
    return f"raise the rate from {float(s['start']):.0%} of its value to all of it over the first {s['steps']} steps"


def warm_up(treated: TreatedWorkload, p: Fix) -> None:
    RateSchedule(warming_up(int(p.settings["steps"]), float(p.settings.get("start", WARM_START)))).attach(treated.optimizer)


def propose_cosine(finding: Finding | None, m: Measurement) -> list[Fix]:
    settings: dict[str, Setting] = {"steps": m.steps}
    return [COSINE.fix("let the rate fall to 0 along half a cosine over the training", finding, settings=settings)]


def anneal(treated: TreatedWorkload, p: Fix) -> None:
    RateSchedule(cosine(int(p.settings["steps"]))).attach(treated.optimizer)


def propose_staircase(finding: Finding | None, m: Measurement) -> list[Fix]:
    settings: dict[str, Setting] = {"steps": max(1, m.steps // 3), "factor": 0.1}
    return [STAIRCASE.fix("divide the rate by 10 after each third of the training", finding, settings=settings)]


def descend_stairs(treated: TreatedWorkload, p: Fix) -> None:
    RateSchedule(staircase(int(p.settings["steps"]), float(p.settings["factor"]))).attach(treated.optimizer)


WARM_UP = RemedyDefinition(
    "warm-up",
    "learning-rate warm-up",
    "optimizer",
    "safe",
    "Goyal et al. 2017, Accurate, Large Minibatch SGD; Ma and Yarats 2021, On the adequacy of untuned warmup",
    propose_warm_up,
    warm_up,
    wording=_warm_words,
)
COSINE = RemedyDefinition(
    "cosine-schedule",
    "cosine schedule",
    "optimizer",
    "safe",
    "Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts",
    propose_cosine,
    anneal,
)
STAIRCASE = RemedyDefinition(
    "step-schedule",
    "step schedule",
    "optimizer",
    "safe",
    "He et al. 2016, Deep Residual Learning for Image Recognition, section 3.4",
    propose_staircase,
    descend_stairs,
)

REMEDIES = (WARM_UP, COSINE, STAIRCASE)
