"""The closed vocabulary: every treatment by its name, and the remedies of rules that only a person can apply."""

from gradcheck.remedies import activation, clipping, precision, recurrence, transformer
from gradcheck.remedies.data import batches
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.initialization import head, lsuv, recurrent, weights
from gradcheck.remedies.loop import edits
from gradcheck.remedies.loss import form, replacement, stability, term_weight
from gradcheck.remedies.normalization import layers, modes
from gradcheck.remedies.optimizer import schedule, settings
from gradcheck.remedies.regularization import augmentation, capacity, dropout, penalties
from gradcheck.remedies.residual import branches
from gradcheck.remedies.wiring import parameters, zero_derivatives
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

MODULES = (
    edits,
    parameters,
    zero_derivatives,
    precision,
    modes,
    replacement,
    form,
    term_weight,
    stability,
    batches,
    weights,
    head,
    recurrent,
    lsuv,
    activation,
    layers,
    branches,
    transformer,
    recurrence,
    settings,
    schedule,
    clipping,
    penalties,
    dropout,
    augmentation,
    capacity,
)

CATALOGUE: dict[str, RemedyDefinition] = {treatment.name: treatment for module in MODULES for treatment in module.REMEDIES}

_PRECISION = "the kind of numbers that a model computes in depends on its device"
_MEANING = "which one is meant cannot be read from the numbers"

# Remedies that rules name but no treatment applies, and why.
ADVICE_ONLY: dict[str, str] = {
    "adapt-siblings": "which layers are adapted is decided where the adapters are made",
    "asymmetric-sides": "what is to hold embeddings apart is the author's choice",
    "balance-adversaries": "which of two trainings is to go slower, and by which loss, is the author's to say",
    "balance-classes": "how classes are to count depends on what mistakes cost",
    "balance-experts": "the balancing term is one of the loss, which is the user's",
    "causal-mask": "where places are kept from seeing later ones is written differently in each model",
    "check-arguments": _MEANING,
    "check-data-path": _MEANING,
    "check-extensions": "it is an installation that fails, not the model",
    "check-pairs": "the data that are compared come from the user's script",
    "check-target": "which tensor the target is to be is the author's to say",
    "copy-before-change": "where a row is to be copied depends on how the data set keeps it",
    "scale-logits": "the temperature is a setting of the task",
    "weight-samples": "what a sample weighs comes from the labels of the script",
    "check-reward": "what a reward looks at is part of the task",
    "check-term": _MEANING,
    "data-of-its-own": "what a process reads is decided where its loader is made",
    "drop-duplicates": "repeated samples may be weights on purpose",
    "drop-features": "a feature that is constant here may vary in other data",
    "drop-last": "batches come from the user's loader",
    "freeze-average": "which model follows which is the author's to say",
    "fix-backward": "only its author knows what the backward pass was to compute",
    "fix-labels": _MEANING,
    "float32-region": _PRECISION,
    "float32-weights": _PRECISION,
    "inspect-data": "a person has to look at the sample",
    "keep-batch-axis": _MEANING,
    "scan-script": "watching makes no experiments",
    "shorter-warm-up": "how long a training is to be is the author's to say",
    "shorter-memory": "how long Adam is to remember shows in long runs, which copies do not train through",
    "z-loss": "a term of the loss is the user's to add",
    "watch-run": "a log does not show what the training does",
    "look-at-rank": "what a process reads is decided where it is started",
    "look-at-data": "what a loop reads is its own",
    "keep-or-remove": _MEANING,
    "loss-scaling": "a GradScaler has to scale, unscale and step in the user's loop; bfloat16 needs none",
    "mask-padding": "how padding is left out follows from what the places are put together by",
    "pool-over-time": "what the loss sees of a sequence is part of the task",
    "remove-hook": _MEANING,
    "remove-unused-modules": "an unused module may be used elsewhere",
    "scale-attention": "where the scores are scaled is written differently in each attention",
    "smooth-activation": "which derivatives the equation takes is part of the task",
    "smaller-batch": "batches come from the user's loader",
    "train-adapters": "who froze them, or switched them off, did so in a place that the numbers do not show",
    "shuffle-together": "where the data are put in order is written differently in each script",
    "split-once": "which samples are to be kept for validation is part of the task",
    "synchronise-ranks": "how a training is spread over processes is decided where it is launched",
}


def apply(treated: TreatedWorkload, fix: Fix) -> None:
    """Applies a fix and notes it in `treated.applied`. Raises Inapplicable; the copy may then be half changed."""
    treatment = CATALOGUE.get(fix.treatment)
    if treatment is not None and treatment.loop:
        raise Inapplicable("the training loop is the user's: it is changed in the source; copies are trained with gradcheck's own loop")
    if treatment is None or treatment.apply is None:
        raise Inapplicable(ADVICE_ONLY.get(fix.treatment, "it has no edit that could be tried"))
    treatment.apply(treated, fix)
    treated.applied.append(fix)
