"""LOSS004: a softmax over another axis than the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradcheck.judge.layers import layer_site
from gradcheck.judge.protocol import Limits, Verdict, found, not_applicable, rule
from gradcheck.nouns.verdict import Evidence, Finding, Remedy
from gradcheck.rules.words import BY_VALUE

if TYPE_CHECKING:
    from gradcheck.nouns.measurement import LossCall, Measurement, Softmax


@rule(
    "LOSS004",
    "softmax-dimension",
    up_to="error",
    needs=("graph", "losses"),
    explains=("LOSS001", "LOSS003", "LOSS005", "GRAD004", "GRAPH007", "OPT001", "OPT002"),
)
def softmax_dimension(m: Measurement, limits: Limits) -> Verdict:
    """A softmax normalises over the batch, or over another axis than the classes.

    ## What it finds
    softmax and log_softmax over axis 0 where that is the batch (also where `dim` was left out and torch chose it), and over an axis other
    than the class axis of the loss that takes the result.

    ## Why it matters
    The probabilities of one sample then depend on which others are in its batch, and do not sum to 1 over the classes: the
    loss can be lowered without telling classes apart, and a single sample always gets probability 1.

    ## How it is measured
    The axis and shape of each call, whether its result goes to the loss by shape changes only, and, for `nll_loss` on
    outputs of more than two axes, how far the classes are from being normalised.

    ## Limits and their sources
    None: the wrong axis counts. An error on the way to the loss, a warning inside the model, where pooling over samples can be
    meant. An axis of width 1 is `output-loss-mismatch`. A square similarity matrix that is normalised
    over both axes (contrastive losses) is silent.

    ## When to ignore it
    When axis 0 is not the batch: an unbatched model, or a set that is pooled.

    ## Example
    ```python
    return nn.functional.log_softmax(logits, dim=0)
    ```

    ## Use instead
    ```python
    return nn.functional.log_softmax(logits, dim=1)
    ```

    ## References
    PyTorch documentation: `torch.nn.functional.softmax`.
    """
    if not m.softmaxes:
        return not_applicable("no softmax is called")
    findings = []
    for s in m.softmaxes:
        if s.axis >= len(s.shape) or s.shape[s.axis] <= 1:
            continue
        if s.over_batch and not _contrastive(s, m.softmaxes):
            findings.append(_over_batch(m, s))
        elif not s.over_batch and (call := _loss_of_other_axis(s, m.losses)) is not None:
            findings.append(_over_wrong_axis(m, s, call))
    return findings


def _contrastive(s: Softmax, every: Sequence[Softmax]) -> bool:
    square = len(s.shape) == 2 and s.shape[0] == s.shape[1]
    return square and any(o.axis == 1 and o.shape == s.shape for o in every)


def _loss_of_other_axis(s: Softmax, calls: Sequence[LossCall]) -> LossCall | None:
    """The nll_loss that takes this result over axis 1 although it is normalised over another."""
    if not s.to_loss or len(s.shape) < 3 or s.axis == 1:
        return None
    return next((c for c in calls if c.function == "nll_loss" and c.input_shape == s.shape and (c.row_logsumexp_error or 0.0) > 0.01), None)


def _over_batch(m: Measurement, s: Softmax) -> Finding:
    name = "log_softmax" if s.log else "softmax"
    how = "dim was not given, and torch takes axis 0" if s.implicit else "dim=0"
    error = s.to_loss
    meaning = (
        "the outputs of a sample do not sum to 1 over the classes, and depend on the other samples"
        if error
        else "samples of a batch influence each other"
    )
    last = len(s.shape) - 1
    return found(
        "error" if error else "warning",
        f"{name} on {list(s.shape)} normalises over the {s.shape[0]} samples of the batch ({how}; expected 1 or higher): {meaning}",
        layers=(s.layer,),
        location=s.site or layer_site(m, s.layer),
        evidence=(Evidence("axis of the softmax", s.axis, 1, "<"),),
        remedies=(Remedy("fix-softmax-dimension", f"pass dim={1 if last == 1 else -1}", "unsafe"),),
        confirmed=BY_VALUE if error else "",
    )


def _over_wrong_axis(m: Measurement, s: Softmax, call: LossCall) -> Finding:
    name = "log_softmax" if s.log else "softmax"
    return found(
        "error",
        f"{name} on {list(s.shape)} normalises over axis {s.axis}, but {call.function} takes the classes from axis 1 (expected 1): "
        f"log-probabilities do not add up over the {s.shape[1]} classes, and the loss falls without telling them apart",
        layers=(s.layer,),
        location=s.site or layer_site(m, s.layer),
        evidence=(Evidence("largest distance of a row's logsumexp from 0", call.row_logsumexp_error or 0.0, 0.01, ">"),),
        remedies=(Remedy("fix-softmax-dimension", "pass dim=1", "unsafe"),),
        confirmed=BY_VALUE,
    )


RULES = (softmax_dimension,)
