"""Treatments of the gradient between backward pass and step: clipping by norm, by value, and adaptive to each unit."""

import math

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.statistics import percentile
from gradcheck.remedies.definition import RemedyDefinition, Settings, Strength
from gradcheck.remedies.modules.surgery import path_now
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload
from gradcheck.workload.workload import Clipping

SETTLED = 20  # steps before which norms are not counted: the first ones are up to ten times larger in healthy trainings
SHARE = 0.9  # percentile that a threshold is taken from: Deep Learning Tuning Playbook
LARGEST_STEP = 0.02  # of the weights' norm: update ratio that suits most nets (calibration E3)
USUAL_NORM, USUAL_SHARE = 1.0, 0.01


def norm_threshold(m: Measurement) -> float:
    """The 90th percentile of the settled gradient norms.

    In a training that diverges they are symptoms: then at most the norm whose step moves the weights by 2 %.
    """
    finite = [n for n in m.probe.gradient_norms if math.isfinite(n)]
    usual = percentile(finite[SETTLED:] or finite, SHARE) if finite else USUAL_NORM
    weights = math.sqrt(sum(p.steps[0].norm ** 2 for p in m.parameters if p.trainable and p.steps and math.isfinite(p.steps[0].norm)))
    o = m.optimizer
    if training_outcome(m) == "diverges" and not o.adaptive and o.lr > 0 and weights > 0:
        usual = min(usual, LARGEST_STEP * weights * (1 - min(o.momentum, 0.99)) / o.lr)
    return float(f"{usual:.2g}") if usual > 0 else USUAL_NORM


def propose_norm(finding: Finding | None, m: Measurement) -> list[Fix]:
    settings: dict[str, Setting] = {"max_norm": norm_threshold(m)}
    return [BY_NORM.fix(_norm_words(settings), finding, settings=settings)]


def _norm_words(s: Settings) -> str:
    return f"clip the gradient's norm at {float(s['max_norm']):.3g}, between backward and step"


def clip_norm(treated: TreatedWorkload, p: Fix) -> None:
    treated.workload.clip = Clipping("norm", float(p.settings["max_norm"]))


def propose_value(finding: Finding | None, m: Measurement) -> list[Fix]:
    """The 90th percentile of the largest entries: those of single parameters at single steps."""
    largest = [s.gradient_max for p in m.parameters for s in p.steps if s.gradient_max and math.isfinite(s.gradient_max)]
    settings: dict[str, Setting] = {"clip_value": float(f"{percentile(largest, SHARE):.2g}") if largest else USUAL_NORM}
    return [BY_VALUE.fix(_value_words(settings), finding, settings=settings)]


def _value_words(s: Settings) -> str:
    return f"clip each entry of the gradient at {float(s['clip_value']):.3g}"


def clip_value(treated: TreatedWorkload, p: Fix) -> None:
    treated.workload.clip = Clipping("value", float(p.settings["clip_value"]))


def propose_adaptive(finding: Finding | None, m: Measurement) -> list[Fix]:
    heads = [name for layer in m.layers if layer.head for name in layer.parameters]
    settings: dict[str, Setting] = {"clipping": USUAL_SHARE, "exempt": ",".join(heads)}
    return [ADAPTIVE.fix(_adaptive_words(settings), finding, settings=settings)]


def _adaptive_words(s: Settings) -> str:
    return f"clip each unit's gradient at {float(s['clipping']):.3g} of the norm of its weights, the output layer left out"


def clip_adaptively(treated: TreatedWorkload, p: Fix) -> None:
    exempt = tuple(path_now(treated, name) for name in str(p.settings.get("exempt", "")).split(",") if name)
    treated.workload.clip = Clipping("adaptive", float(p.settings["clipping"]), exempt=exempt)


BY_NORM = RemedyDefinition(
    "clip-gradient-norm",
    "gradient clipping by norm",
    "clipping",
    "safe",
    "Pascanu et al. 2013, On the difficulty of training recurrent neural networks; Seetharaman et al. 2020, AutoClip",
    propose_norm,
    clip_norm,
    strengths=(Strength("max_norm", USUAL_NORM, 1e-2, 1e2),),
    wording=_norm_words,
)
BY_VALUE = RemedyDefinition(
    "clip-gradient-value",
    "gradient clipping by value",
    "clipping",
    "safe",
    "Zhang et al. 2020, Why are Adaptive Methods Good for Attention Models?",
    propose_value,
    clip_value,
    strengths=(Strength("clip_value", 0.1, 1e-4, 10.0),),
    wording=_value_words,
)
ADAPTIVE = RemedyDefinition(
    "adaptive-gradient-clipping",
    "adaptive gradient clipping",
    "clipping",
    "safe",
    "Brock et al. 2021, High-Performance Large-Scale Image Recognition Without Normalization",
    propose_adaptive,
    clip_adaptively,
    strengths=(Strength("clipping", USUAL_SHARE, 1e-3, 0.3),),
    wording=_adaptive_words,
)

REMEDIES = (BY_NORM, BY_VALUE, ADAPTIVE)
