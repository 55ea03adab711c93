from collections.abc import Sequence

from gradcheck.analysis.layer_groups import layer_site
from gradcheck.analysis.wording import BY_VALUE, quoted
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.losses import LossCall, Softmax
from gradcheck.types.measurement import Measurement, Similarity
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule


@rule(
    "LOSS004",
    up_to="error",
    needs=("graph", "losses"),
    explains=("LOSS001", "LOSS003", "LOSS005", "GRAD004", "GRAPH007", "OPT001", "OPT007", "OPT002"),
)
def softmax_dimension(m: Measurement, limits: Limits) -> Verdict:
    """A softmax normalises over the batch, or over an axis other than the classes.

    ## What it finds
    softmax and log_softmax over the samples of the batch: axis 0, also where `dim` was left out and torch chose it, or axis 1 of
    [views, samples, classes]; and over an axis other than the class axis of the loss that takes the result, such as time. Embeddings
    whose features are normalised over the samples, and which are then compared sample by sample. Inside the model, softmax over the
    single unit of a layer, which gives 1 everywhere: attention that weighs all positions alike.

    ## Why it matters
    The probabilities of one sample then depend on which others are in its batch, and do not sum to 1 over the classes: the
    loss can be lowered without telling classes apart, and a single sample always gets probability 1.

    ## How it is measured
    The axis and shape of each call, whether its result goes to the loss by shape changes only, and how far the
    classes that `nll_loss` and `kl_div` take are from being normalised. Of products of two matrices that `normalize`, or a division
    by their norms, gave lengths of 1: whether the rows that are compared have these lengths, or the columns.

    ## Limits and their sources
    None: the wrong axis counts. An error on the way to the loss, a warning inside the model, where pooling over samples can be
    meant, where torch chose axis 0 of three for want of a `dim`, and for similarities, whose loss still falls. An axis of width 1
    is a warning where a layer with one unit makes its argument, and silent otherwise, as attention to a single key; on the way to the
    loss it is `output-loss-mismatch`.
    A square similarity matrix that is normalised over both axes (contrastive losses) is silent.

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
    if not m.softmaxes and not m.similarities:
        return not_applicable("no softmax is called")
    findings = [_similarity(s) for s in m.similarities]
    for s in m.softmaxes:
        if s.axis >= len(s.shape) or s.shape[s.axis] <= 1:
            findings += [_of_one(m, s)] if s.single is not None and not s.to_loss else []
            continue
        if s.over_batch and not _contrastive(s, m.softmaxes):
            findings.append(_over_batch(m, s))
        elif not s.over_batch and (call := _loss_of_other_axis(s, m.losses)) is not None:
            findings.append(_over_wrong_axis(m, s, call))
        elif not s.over_batch and s.implicit and s.axis == 0 and len(s.shape) > 1:
            findings.append(_chosen_by_torch(m, s))
    return findings


def _similarity(s: Similarity) -> Finding:
    rows, width = s.shape
    return found(
        "warning",
        f"embeddings of shape {list(s.shape)} are normalised over their {rows} rows (dim=0; expected 1), and then compared row by row: the "
        f"similarities are not cosines, and each of the {width} features of a sample depends on the other samples of the batch",
        location=s.site,
        evidence=Evidence("axis of the normalization", 0, 1, "<"),
        remedies=Remedy("fix-softmax-dimension", "pass dim=1", "unsafe"),
    )


def _of_one(m: Measurement, s: Softmax) -> Finding:
    """Weights that are 1 whatever the layer says that makes them."""
    other = max((i for i in range(1, len(s.shape)) if s.shape[i] > 1), key=lambda i: s.shape[i], default=None)
    meant = f"; axis {other} has {s.shape[other]} entries" if other is not None else ""
    cure = f"pass dim={other}, so that the {s.shape[other]} weights add up to 1" if other is not None else "use a sigmoid if it is a gate"
    return found(
        "warning",
        f"{'log_softmax' if s.log else 'softmax'} over axis {s.axis} of {list(s.shape)} has 1 entry to normalise (at least 2 needed): "
        f"the result is constant, and {quoted(s.single or '')}, which makes its argument, has no effect and no gradient{meant}",
        layers=(s.layer,),
        location=s.site or layer_site(m, s.layer),
        evidence=Evidence("entries on the axis", 1, 2, "<", "", s.single),
        remedies=Remedy("fix-softmax-dimension" if other is not None else "check-arguments", cure, "unsafe"),
    )


def _contrastive(s: Softmax, every: Sequence[Softmax]) -> bool:
    square = len(s.shape) == 2 and s.shape[0] == s.shape[1]
    return square and any(o.axis == 1 and o.shape == s.shape for o in every)


def _loss_of_other_axis(s: Softmax, calls: Sequence[LossCall]) -> LossCall | None:
    """The loss that takes this result as log-probabilities of its classes although it is normalised over another axis."""
    if not s.to_loss or not s.log or len(s.shape) < 3:
        return None
    takers = (c for c in calls if c.function in ("nll_loss", "kl_div") and (c.row_logsumexp_error or 0.0) > 0.01)
    return next((c for c in takers if c.input_shape == s.shape or (c.producer == "log_softmax" and c.producer_site == s.site)), None)


def _over_batch(m: Measurement, s: Softmax) -> Finding:
    name = "log_softmax" if s.log else "softmax"
    how = "dim was not given, and torch takes axis 0" if s.implicit else f"dim={s.axis}"
    wanted = "another axis" if s.axis else "1 or higher"
    error = s.to_loss
    meaning = (
        "the outputs of a sample do not sum to 1 over the classes, and depend on the other samples"
        if error
        else "samples of a batch influence each other"
    )
    last = len(s.shape) - 1
    return found(
        "error" if error else "warning",
        f"{name} on {list(s.shape)} normalises over the {s.shape[0]} samples of the batch ({how}; expected {wanted}): {meaning}",
        layers=(s.layer,),
        location=s.site or layer_site(m, s.layer),
        evidence=Evidence("axis of the softmax", s.axis, s.axis + 1, "<"),
        remedies=Remedy("fix-softmax-dimension", f"pass dim={1 if last == 1 else -1}", "unsafe"),
        confirmed=BY_VALUE,
    )


def _chosen_by_torch(m: Measurement, s: Softmax) -> Finding:
    name = "log_softmax" if s.log else "softmax"
    return found(
        "warning",
        f"{name} on {list(s.shape)} is given no dim, and torch takes axis 0 for three axes (expected 1 or higher): classes or keys are "
        "hardly there",
        layers=(s.layer,),
        location=s.site or layer_site(m, s.layer),
        evidence=Evidence("axis of the softmax", s.axis, 1, "<"),
        remedies=Remedy("fix-softmax-dimension", "pass dim=-1", "unsafe"),
    )


def _over_wrong_axis(m: Measurement, s: Softmax, call: LossCall) -> Finding:
    name = "log_softmax" if s.log else "softmax"
    axis = 1 if call.input_shape == s.shape and call.function == "nll_loss" else len(s.shape) - 1
    return found(
        "error",
        f"{name} on {list(s.shape)} normalises over axis {s.axis}, but {call.function} takes the classes from axis {axis} "
        f"(expected {axis}): log-probabilities do not add up over the {s.shape[axis]} classes, and the loss falls without telling "
        "them apart",
        layers=(s.layer,),
        location=s.site or layer_site(m, s.layer),
        evidence=Evidence("largest distance of a row's logsumexp from 0", call.row_logsumexp_error or 0.0, 0.01, ">"),
        remedies=Remedy("fix-softmax-dimension", f"pass dim={axis}", "unsafe"),
        confirmed=BY_VALUE,
    )
