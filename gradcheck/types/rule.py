"""What a rule is: a pure function of a Measurement, with its name, limits and page beside it.

    @rule("ACT002", up_to="error", needs=("units",),
          limits={"warning_share": Limit(0.5, "of units", "SageMaker DeadRelu; ...")})
    def dead_units(m: Measurement, limits: Limits) -> Verdict:
        '''Units that are never active ... (the page: fixed headings, see PAGE_HEADINGS)'''

A rule returns a list of findings (empty: passed), or `not_applicable("no ReLU")`, or `not_measured("...")`.
It imports no torch and changes nothing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement

T = TypeVar("T")

# What a rule can ask to be measured. The union over the selected rules is measured once.
Need = Literal[
    "signals",  # Layer.snapshots: outputs and gradients
    "units",  # Layer.units, dead_units
    "similarity",  # Snapshot.sample_cosine, token_cosine
    "parameters",  # Parameter: weights, gradients and updates at the measured steps
    "graph",  # Layer.activation, normalized, residual, head; hidden, softmaxes, mixes, norms, pairs, streams
    "reach",  # Parameter.used, cuts: which parameters the loss reaches
    "optimizer",  # OptimizerFacts, and the groups that hold each Parameter
    "losses",  # LossCall
    "data",  # DataFacts
    "probe",  # the short training with the user's optimizer, and the experiments that follow when it fails
    "numerics",  # NonFinite
    "derivatives",  # Derivatives, and the following as in types/checks.py
    "dependence",
    "sequence",  # SequenceFacts
    "padding",
    "routing",  # Router
    "adapters",  # Adaptation
    "recurrence",
    "samples",
    "attention",
    "precision",  # HalfGradients
    "validation",
    "baseline",
    "sharpness",
    "critical",  # CriticalRate
    "terms",  # IdleTerm
    "balance",  # Imbalance
    "embeddings",
    "functional_step",
    "epsilon",  # small_epsilon
    "clipping",  # Clip
    "regularization",
    "normalization",  # Statistics; runs the probe first
    "log",  # LogFacts: only where the log of a finished run is read, or a training was watched
    "gauges",  # Gauge: only where a training was watched
    "loop",  # LoopFacts: only where a training script was run, or a training was watched
]

# The same in the user's words.
LOOKS: Mapping[Need, str] = {
    "signals": "the outputs of the layers and the gradients at them",
    "units": "the activity of the units",
    "similarity": "how alike the samples become inside the model",
    "parameters": "the weights, their gradients and their updates",
    "graph": "how the layers are connected up to the loss",
    "reach": "which parameters the loss reaches",
    "optimizer": "the settings of the optimizer",
    "losses": "the calls of loss functions",
    "data": "the inputs and targets",
    "probe": "the course of the training",
    "numerics": "where NaN and infinity come from",
    "derivatives": "the gradient against finite differences",
    "dependence": "whether the output depends on the input, and on other samples",
    "sequence": "what of a sequence is predicted from what",
    "padding": "what padding changes in the output",
    "routing": "which experts a router chooses",
    "adapters": "which frozen weights have an adapter",
    "recurrence": "the gradient over time steps",
    "samples": "the gradients of single samples",
    "attention": "the attention weights",
    "precision": "gradients that are lost in float16",
    "validation": "the loss on validation data",
    "baseline": "what a linear model makes of the data",
    "sharpness": "the sharpness of the loss",
    "critical": "the rate at which the loss rises along the own update",
    "terms": "what the loss is a sum of",
    "balance": "how much each term of the loss weighs",
    "embeddings": "how far apart the embeddings are",
    "functional_step": "how far the first update moves the output",
    "epsilon": "training with the usual epsilon",
    "clipping": "the effect of gradient clipping",
    "regularization": "training without regularization",
    "normalization": "the statistics of batch normalization",
    "log": "the log of a finished run",
    "loop": "the training loop",
    "gauges": "the gauges of a watched run",
}

PAGE_HEADINGS = (
    "What it finds",
    "Why it matters",
    "How it is measured",
    "Limits and their sources",
    "When to ignore it",
    "Example",
    "Use instead",
    "References",
)


def in_words(what: str) -> str:
    """The user's words for a need; layers and the like are in words already."""
    return next((text for need, text in LOOKS.items() if need == what), what)


@dataclass(frozen=True)
class Limit:
    """A threshold of a rule, settable as `[tool.gradcheck.rules.NAME] limit-name = value`."""

    value: float
    unit: str
    source: str  # where the number comes from: a paper, or the benchmark that set it


Limits = Mapping[str, float]  # limit name -> value, the user's settings applied


@dataclass(frozen=True)
class NoVerdict:
    status: Literal["not-applicable", "not-measured"]
    reason: str


Verdict = Sequence[Finding] | NoVerdict


class Unmet(Exception):
    """Ends a rule whose measurement lacks what it judges; carries the verdict."""


def not_applicable(reason: str) -> NoVerdict:
    """The rule has nothing to judge here: "no ReLU in the model"."""
    return NoVerdict("not-applicable", reason)


def not_measured(reason: str) -> NoVerdict:
    """What the rule judges exists but could not be measured."""
    return NoVerdict("not-measured", reason)


def required(value: T | None, otherwise: NoVerdict) -> T:
    """What a rule cannot judge without. Only for the rule as a whole: it ends there."""
    if value is None:
        raise Unmet(otherwise)
    return value


def found(
    severity: Severity,
    message: str,
    *,
    layers: Sequence[str] = (),
    location: Location | None = None,
    evidence: Evidence | Sequence[Evidence] = (),
    remedies: Remedy | Sequence[Remedy] = (),
    confirmed: str = "",
) -> Finding:
    """A finding of the rule that is running; the judge adds its code and name. `confirmed`: what makes it an error; else it is left out."""
    numbers = (evidence,) if isinstance(evidence, Evidence) else tuple(evidence)
    cures = (remedies,) if isinstance(remedies, Remedy) else tuple(remedies)
    return Finding("", "", severity, message, tuple(layers), location, numbers, cures, confirmed if severity == "error" else "")


@dataclass(frozen=True)
class Rule:
    code: str
    name: str
    up_to: Severity
    check: Callable[[Measurement, Limits], Verdict]
    needs: tuple[Need, ...] = ()
    limits: Mapping[str, Limit] = field(default_factory=dict)
    explains: tuple[str, ...] = ()  # codes that are consequences when this rule fires with at least their severity
    wants: tuple[Need, ...] = ()  # measured for it as well; the rule judges without when that failed
    origin: str = "gradcheck"  # distribution or file that brought it
    explains_here: tuple[str, ...] = ()  # codes that are consequences when they point at the same expression

    @property
    def family(self) -> str:
        return self.code.rstrip("0123456789")

    @property
    def page(self) -> str:
        import inspect

        page = inspect.cleandoc(self.check.__doc__ or "")
        return packed_pages().get(self.check.__name__, page) if self.origin == "gradcheck" else page

    @property
    def summary(self) -> str:
        return (self.check.__doc__ or "").strip().partition("\n")[0].rstrip(".")


@functools.cache
def packed_pages() -> Mapping[str, str]:
    """Function -> page in a wheel, where one file holds the pages and a rule's docstring their first line (setup.py); else nothing."""
    import bz2
    import json

    packed = Path(__file__).parents[1] / "rule_pages.json.bz2"
    return json.loads(bz2.decompress(packed.read_bytes())) if packed.exists() else {}


def rule(
    code: str,
    name: str = "",
    *,
    up_to: Severity,
    needs: Sequence[Need] = (),
    limits: Mapping[str, Limit] | None = None,
    explains: Sequence[str] = (),
    wants: Sequence[Need] = (),
    explains_here: Sequence[str] = (),
) -> Callable[[Callable[[Measurement, Limits], Verdict]], Rule]:
    """Makes a rule of a function, named as the function, with hyphens, unless another name is given."""

    def wrap(check: Callable[[Measurement, Limits], Verdict]) -> Rule:
        @functools.wraps(check)
        def judged(m: Measurement, settings: Limits) -> Verdict:
            try:
                return check(m, settings)
            except Unmet as unmet:
                verdict: NoVerdict = unmet.args[0]
                return verdict

        called, here = name or check.__name__.replace("_", "-"), tuple(explains_here)
        return Rule(code, called, up_to, judged, tuple(needs), dict(limits or {}), tuple(explains), tuple(wants), explains_here=here)

    return wrap
