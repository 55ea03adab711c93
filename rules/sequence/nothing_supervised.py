from gradcheck.analysis.wording import BY_VALUE, percent
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule
from gradcheck.types.sequence import Supervision


@rule(
    "SEQ003",
    up_to="error",
    needs=("sequence",),
    wants=("probe",),
    limits={
        "empty_rows": Limit(
            0.3,
            "of the sequences",
            "where Unsloth Studio stops a training (unslothai/unsloth#6664); 0 in the causal models of the calibration",
        )
    },
    explains=("NUM001", "LOSS005", "OPT001", "OPT007", "OPT002", "GRAD004", "GRAPH001", "LOOP001", "GRAPH008"),
)
def nothing_supervised(m: Measurement, limits: Limits) -> Verdict:
    """Batches, or sequences, in which every target is ignored.

    ## What it finds
    Calls of cross entropy or `nll_loss` whose targets are all equal to `ignore_index`: labels that were masked entirely, a prompt that
    fills the sequence, truncation that cut the answers off. In next-token training also the share of sequences without any target.

    ## Why it matters
    The mean over nothing is NaN. Frameworks that divide by something else, or filter what they log, show a loss of 0: the training goes
    on, with a loss that looks perfect, and learns nothing.

    ## How it is measured
    The targets of each loss over classes in some batches, as the loss gets them: the first batch; where some of its targets
    do not count, up to four; and the batch at which the loss of the short training became NaN. A loss that is called chunk by chunk
    counts as one; so does a function that takes hidden states and the head's weight.

    ## Limits and their sources
    None for batches: one without any target is an error where the loss is then NaN, or when all that were looked at are like
    that, and a warning otherwise. `empty-rows` 0.3: sequences without a target, in next-token training only; short sequences of
    masked language models have none by chance.

    ## When to ignore it
    When batches without targets are skipped, or when another term of the loss trains on them.

    ## Example
    ```python
    labels = [-100] * len(ids)
    ```

    ## Use instead
    ```python
    labels = [-100] * len(prompt) + ids[len(prompt):]
    ```

    ## References
    PyTorch documentation: `torch.nn.functional.cross_entropy`, `ignore_index`. Reports: huggingface/trl#6668, huggingface/trl#3927,
    unslothai/unsloth#2900, unslothai/unsloth#6664.
    """
    seen = m.sequence.supervision if m.sequence is not None else ()
    if not seen:
        return not_applicable("no loss over classes whose targets can be left out")
    chunks: dict[object, list[Supervision]] = {}
    for s in seen:
        chunks.setdefault((s.function, s.site or id(s)), []).append(s)
    seen = tuple(min(group, key=lambda s: s.empty) for group in chunks.values())  # a chunk of a sequence may be all prompt
    others = {id(s): any(o is not s and not o.empty for o in seen) for s in seen}
    findings = [_nothing(s) for s in seen if s.empty and not (others[id(s)] and s.finite and s.empty < s.batches)]
    rows = [s for s in seen if not s.empty and s.rows and s.empty_rows / s.rows > limits["empty_rows"]]
    return [*findings, *(_rows(s, limits) for s in rows)]


def _nothing(s: Supervision) -> Finding:
    certain = not s.finite or s.empty == s.batches
    becomes = "the value of the loss is meaningless" if s.finite else "a mean over nothing is NaN"
    message = (
        f"nothing is supervised: in {s.empty} of {s.batches} batches all {s.targets} targets of {s.function} are {s.ignore_index}, "
        f"which it ignores (limit 0): {becomes}, and nothing is learned"
    )
    text = (
        f"keep the labels of what is to be predicted: see where the labels become {s.ignore_index}, whether what marks the answers occurs "
        "in the text at all, and whether the length that sequences are cut at leaves the answers whole"
    )
    return found(
        "error" if certain else "warning",
        message,
        location=s.site,
        evidence=Evidence("batches without any target", s.empty, 0, ">", f"of {s.batches}"),
        remedies=Remedy("supervise-targets", text),
        confirmed=BY_VALUE,
    )


def _rows(s: Supervision, limits: Limits) -> Finding:
    share = s.empty_rows / s.rows
    message = (
        f"{s.empty_rows} of {s.rows} sequences ({percent(share)}, limit {percent(limits['empty_rows'])}) have no target that counts: "
        "nothing is learned from them"
    )
    text = "drop sequences whose answer was cut off, or raise the length that they are cut at"
    return found(
        "warning",
        message,
        location=s.site,
        evidence=Evidence("sequences without any target", share, limits["empty_rows"], ">", "of the sequences"),
        remedies=Remedy("supervise-targets", text),
    )
