from gradcheck.analysis.wording import BY_VALUE, percent
from gradcheck.rules.graph import _place
from gradcheck.types.checks import Dependence
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.losses import Scramble
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule


@rule(
    "GRAPH007",
    up_to="error",
    needs=("dependence",),
    wants=("graph",),
    limits={"share": Limit(1e-3, "of the own change", "heuristic: independent samples give 0, or float32's rounding of 1e-6")},
    explains=("GRAPH008", "LOSS005", "OPT001", "OPT007", "OPT002", "NORM003"),
)
def samples_mixed(m: Measurement, limits: Limits) -> Verdict:
    """The output for one sample depends on the other samples of its batch, or on its position among them.

    ## What it finds
    A recurrent or attention layer that takes the batch axis for time (`batch_first` forgotten), `view` or `reshape`
    over axes in the wrong order, a softmax or a running sum over the batch, an index that picks one sample for all. Positional
    encodings that are added along the batch. `view` or
    `reshape` in place of `permute` within a sample: an axis of time that keeps its size and gets entries of others.

    ## Why it matters
    Such a model's output depends on which samples happen to share a batch. Its training loss may fall; alone, or
    in another batch, a sample gets another output.

    ## How it is measured
    On the trained copy in evaluation mode, so that normalization uses its running statistics. Some samples of a small batch are
    replaced by others, and the outputs of those that stayed are compared. When they changed, both passes are compared operation
    by operation: the first result in which samples have met is blamed. Statistics over the batch (a normalization written by
    hand, minibatch discrimination), relations of all samples to each other, and choices by rank (sorting, routing) are advice
    only, unless each output of a batch of copies of one sample is found in the row of another: sorted, and not put back. So is
    everything when it is not certain which axis the samples are on: with random data, without a target of as many rows, or
    when the second axis could be theirs as well and the batches were not stacked by a DataLoader. Where samples are not mixed,
    copies of one sample are given to the model: values of theirs that an addition, a product or a table makes different come
    from their positions in the batch.

    A `view` or `reshape` within samples is a warning where one axis has a size that occurs once before and once after, in another
    place, and the cuts fit no splitting and joining of axes.

    ## Limits and their sources
    `share` 0.001: change of the output of samples that stayed, over the change of those that were replaced (heuristic:
    independent samples give exactly 0, or float32's rounding of about 1e-6; mixing gives 0.01 to 1).

    ## When to ignore it
    When the model compares the samples of a batch on purpose, or when they are the nodes of one graph.

    ## Example
    ```python
    self.rnn = nn.LSTM(8, 32)
    hidden, _ = self.rnn(x)  # x is [batch, time, features]
    ```

    ## Use instead
    ```python
    self.rnn = nn.LSTM(8, 32, batch_first=True)
    hidden, _ = self.rnn(x)
    ```

    ## References
    Karpathy 2019, A Recipe for Training Neural Networks: use backprop to chart dependencies.
    """
    d = m.dependence
    if m.scrambles and (d is None or (d.mixed or 0.0) <= limits["share"]):
        return [_scrambled(s) for s in m.scrambles]
    if d is None or d.mixed is None:
        return not_measured("samples could not be told apart in the model's input and output")
    certain = d.certain and m.data.given
    if d.mixed <= limits["share"]:
        return [_placed(d, certain)] if d.placed else []
    wrong = certain and (d.meant is None or d.misplaced)
    return [_mixing(d, "error" if wrong else "info", certain, limits["share"])]


def _scrambled(s: Scramble) -> Finding:
    size = s.before[s.axis]
    return found(
        "warning",
        f"{s.operation} of {list(s.before)} as {list(s.after)} keeps the {size} of axis {s.axis} as a size only (limit: entries stay "
        f"together): each of the {size} gets entries of others, as where permute belongs before it",
        location=s.site,
        evidence=Evidence("axes that keep their size and not their entries", 1, 0, ">"),
        remedies=Remedy("keep-batch-axis", f"bring the axes into the order that is wanted with permute, then {s.operation}", "unsafe"),
    )


def _placed(d: Dependence, certain: bool) -> Finding:
    sure = "" if certain else "if the samples are on the first axis, "
    operation = (d.operation or "").strip("_")
    message = (
        f"{sure}{operation}{_place(d.layer)} gives copies of one sample different values (limit 0.1 % apart): something is added along the "
        "batch, which stands for places in it and not for positions in the sample"
    )
    return found(
        "error" if certain else "info",
        message,
        layers=[d.layer],
        location=d.site,
        evidence=Evidence("copies of a sample that differ", 1.0, 0.0, ">", "", d.layer),
        remedies=Remedy(
            "keep-batch-axis", "slice and broadcast encodings along the positions: pe[:, :x.size(1)] for [batch, time, features]"
        ),
        confirmed=BY_VALUE,
    )


_MEANT = {
    "statistics": "statistics over the batch, as a normalization written by hand has them",
    "relation": "relations of all samples to each other",
    "routing": "a choice by rank among the samples",
}
_SEQUENCE = frozenset(
    ("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "_native_multi_head_attention", "scaled_dot_product_attention")
)


def _mixing(d: Dependence, severity: Severity, certain: bool, limit: float) -> Finding:
    operation = (d.operation or "").strip("_")
    operation = {"getitem": "an index"}.get(operation, operation)
    where = f"{operation or 'something'}{_place(d.layer)}" if operation or d.layer else "the model"
    sure = "" if certain else "if the samples are on the first axis, "
    moved = ": samples get the outputs of others, in an order by rank that is not undone before they meet their targets"
    what = (
        moved
        if d.misplaced
        else f": {_MEANT[d.meant]}"
        if d.meant
        else " and makes the model depend on what else is in a batch"
        if severity == "error"
        else ""
    )
    message = (
        f"{sure}{where} mixes the samples of a batch: when some are replaced, the output of the others changes by "
        f"{percent(d.mixed or 0.0)} as much (limit {percent(limit)}){what}"
    )
    evidence = Evidence("change of the other samples' output", d.mixed or 0.0, limit, ">", "of the own change", d.layer)
    return found(severity, message, layers=[d.layer], location=d.site, evidence=evidence, remedies=_unmix(d, operation), confirmed=BY_VALUE)


def _unmix(d: Dependence, operation: str) -> Remedy:
    name = d.operation or ""
    if d.misplaced:
        return Remedy("keep-batch-axis", "put the results back: back = torch.argsort(order); output[back]", "unsafe")
    if name in _SEQUENCE:
        return Remedy("batch-first", f"create {d.layer or 'the layer'} with batch_first=True, or give it [time, batch, features]", "unsafe")
    if "softmax" in name or name == "normalize":
        return Remedy(
            "other-axis", f"let {operation}{_place(d.layer)} run over the features or classes (dim=-1), not over axis 0", "unsafe"
        )
    if name.strip("_") in ("view", "reshape", "flatten", "unflatten"):
        text = f"give {operation}{_place(d.layer)} its axes in their order: permute back before it, and keep the batch axis first"
        return Remedy("keep-batch-axis", text, "unsafe")
    return Remedy(
        "keep-batch-axis", f"leave the batch axis alone in {operation or 'the model'}{_place(d.layer)}: work on the other axes", "unsafe"
    )
