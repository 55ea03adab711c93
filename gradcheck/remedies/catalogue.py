"""The closed vocabulary: every treatment by its name, and the remedies of rules that nothing but a person can apply."""

from __future__ import annotations

from gradcheck.remedies import (
    activation,
    adaptive_optimizer,
    augmentation,
    capacity,
    clipping,
    data,
    dropout,
    initialization,
    initialization_output,
    initialization_recurrent,
    label_smoothing,
    loop,
    loss,
    loss_form,
    lsuv,
    modes,
    normalization,
    optimizer,
    output_activation,
    penalties,
    placeholder,
    precision,
    recurrence,
    regularization,
    residual,
    schedule,
    softmax_axis,
    stability,
    transformer,
    weight_decay,
    wiring,
    zero_derivatives,
)
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

MODULES = (
    loop,
    wiring,
    zero_derivatives,
    placeholder,
    precision,
    softmax_axis,
    modes,
    loss,
    loss_form,
    stability,
    output_activation,
    data,
    initialization,
    initialization_output,
    initialization_recurrent,
    lsuv,
    activation,
    normalization,
    residual,
    transformer,
    recurrence,
    adaptive_optimizer,
    optimizer,
    schedule,
    weight_decay,
    clipping,
    penalties,
    dropout,
    label_smoothing,
    regularization,
    augmentation,
    capacity,
)

CATALOGUE: dict[str, RemedyDefinition] = {treatment.name: treatment for module in MODULES for treatment in module.TREATMENTS}

_PRECISION = "the kind of numbers that a model computes in depends on its device"
_MEANING = "which one is meant cannot be read from the numbers"

# Remedies that rules name and no treatment applies, and why.
ADVICE_ONLY: dict[str, str] = {
    "asymmetric-sides": "what is to hold embeddings apart is the author's choice",
    "balance-classes": "how classes are to count depends on what mistakes cost",
    "balance-experts": "the balancing term is one of the loss, which is the user's",
    "causal-mask": "where places are kept from seeing later ones is written differently in each model",
    "check-arguments": _MEANING,
    "check-data-path": _MEANING,
    "check-extensions": "it is an installation that fails, not the model",
    "check-pairs": "the data that are compared come from the user's script",
    "check-reward": "what a reward looks at is part of the task",
    "check-term": _MEANING,
    "drop-duplicates": "repeated samples may be weights on purpose",
    "drop-features": "a feature that is constant here may vary in other data",
    "drop-last": "batches come from the user's loader",
    "fix-backward": "only its author knows what the backward pass was to compute",
    "fix-labels": _MEANING,
    "float32-region": _PRECISION,
    "float32-weights": _PRECISION,
    "inspect-data": "a person has to look at the sample",
    "keep-batch-axis": _MEANING,
    "follow-buffers": "which model follows which is the author's to say",
    "keep-optimizer": "where it is to be made, and what it is to hold, follows from the loop",
    "keep-or-remove": _MEANING,
    "keep-scheduler": "where it is to be made follows from the loop",
    "loss-scaling": "a GradScaler has to scale, unscale and step in the user's loop; bfloat16 needs none",
    "mask-padding": "how padding is left out follows from what the places are put together by",
    "pool-over-time": "what the loss sees of a sequence is part of the task",
    "remove-hook": _MEANING,
    "remove-unused-modules": "an unused module may be used elsewhere",
    "scale-attention": "where the scores are scaled is written differently in each attention",
    "shift-labels": "whether the script or the model shifts them is the author's to say",
    "smooth-activation": "which derivatives the equation takes is part of the task",
    "smaller-batch": "batches come from the user's loader",
    "supervise-targets": "what is to be predicted is part of the task",
    "synchronise-ranks": "how a training is spread over processes is decided where it is launched",
}


def apply(patient: TreatedWorkload, prescription: Fix) -> None:
    """Applies a prescription and notes it in `patient.applied`. Raises Inapplicable; the patient may then be half changed."""
    treatment = CATALOGUE.get(prescription.treatment)
    if treatment is not None and treatment.loop:
        raise Inapplicable("the training loop is the user's: it is mended in the source; copies are trained with a loop of gradcheck's")
    if treatment is None or treatment.apply is None:
        raise Inapplicable(ADVICE_ONLY.get(prescription.treatment, "it has no edit that could be tried"))
    treatment.apply(patient, prescription)
    patient.applied.append(prescription)
