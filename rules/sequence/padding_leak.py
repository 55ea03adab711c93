from gradcheck.analysis.wording import BY_VALUE, number, percent, probe_failure
from gradcheck.rules.sequence.future_leak import ATTENTIONS, PRODUCTS, RECURRENT
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, required, rule
from gradcheck.types.sequence import Padding

ROUNDING = 1e-5  # as in measure/checks/padding.py
TOLD = {
    "mask": "the model is given a mask of it",
    "lengths": "the model is given the lengths",
    "index": "its embedding has a padding index, and batches differ in length",
    "targets": "the loss ignores its targets",
}


@rule(
    "SEQ004",
    up_to="error",
    needs=("padding",),
    wants=("probe",),
    limits={
        "effect": Limit(
            0.4,
            "of the spread of the outputs",
            "calibration, at 1 to 300 steps: 12 models that heed padding, 0; convolutions under a maximum over time, at most 0.26; "
            "means over all places 0.86 to 2.1, attention pooling 0.74 to 1.3, a last place that is read 0.15 to 1.7",
        ),
        "attention": Limit(
            0.02,
            "of the spread of the outputs",
            "calibration, at 1 to 300 steps: attention with a mask, 0; encoders without one 0.01 to 0.3",
        ),
    },
    explains=("GRAD003", "GRAD004", "LOSS005", "OPT001", "OPT007", "OPT002", "OPT003", "GRAPH008", "ACT002", "ACT004", "LOSS009"),
)
def padding_leak(m: Measurement, limits: Limits) -> Verdict:
    """The output for a sequence depends on how much padding follows it.

    ## What it finds
    Recurrent layers whose last position is read although the row ends in padding, or that run backwards over it; means, maxima
    and attention that count padded positions; attention layers without a mask of them. Only where something tells which
    positions are padding: a mask or lengths that the model is given, or the padding index of its embedding, where batches are
    padded to different lengths. Masks that are inverted, so that an output for the whole sequence depends on its
    padding alone.

    ## Why it matters
    The output for a sequence depends on the longest one in its batch: it differs in evaluation, and when alone. A recurrent
    layer that reads hundreds of padded positions has forgotten the sequence by then, and learns nothing from it.

    ## How it is measured
    In evaluation mode, after the short training: up to four sequences of different lengths, each by itself, as the batch has
    them, and cut to their own length. The change of the output at real positions, or of an output for the whole sequence, over
    the spread of outputs in the batch. Where there is one, both passes are compared operation by operation. Where padding
    comes first, its tokens are replaced instead, where the embedding reads them: cutting it off would move the positions. That
    is judged for attention only, and positions that are counted from the padding are not. Also, each sequence with another
    one's tokens at its real positions, or at its padded ones.

    ## Limits and their sources
    `effect` 0.4 and, where attention is where padding first meets what is real, `attention` 0.02. Calibrated on classifiers and
    taggers of 3 to 20 tokens, 39 % of the positions padded, after 1, 8, 40, 100 and 300 steps. Healthy, all exactly 0: packed
    LSTM, output gathered at the last real position, masked mean, sum over lengths, masked maximum, masked convolution,
    transformer encoders with a mask under a mean and under a class token, packed bidirectional tagger, one-directional tagger,
    `EmbeddingBag`, masked attention pooling. Convolutions under a maximum over time without a mask, which many use: 0.01 to
    0.26. Faulty: mean 1.6 to 2.1, mean over convolutions 0.86 to 1.2, attention pooling 0.74 to 1.3, last position or last
    state of an LSTM 0.15 to 1.7 (the less, the better it fits its training data), encoders without a mask 0.01 to 0.3. A
    warning; an error when the probe training failed as well.

    ## When to ignore it
    When padding carries meaning, as silence or an empty square does.

    ## Example
    ```python
    out, _ = self.gru(self.embed(tokens))
    return self.head(out[:, -1])
    ```

    ## Use instead
    ```python
    packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
    _, state = self.gru(packed)
    return self.head(state[-1])
    ```

    ## References
    PyTorch documentation: `torch.nn.utils.rnn.pack_padded_sequence`, `key_padding_mask` of `torch.nn.MultiheadAttention`.
    """
    p = required(m.padding, not_applicable("nothing shows which places are padding at the end of sequences"))
    if p.inverted:
        return [_inverted(p)]
    if p.told == "index" and not p.varies:
        return not_applicable("all batches are padded to one length, and the model is not told of it")
    name = "attention" if p.operation in (*ATTENTIONS, *PRODUCTS) else "effect"
    if p.before and name != "attention":
        return []  # a start that is always the same, as recurrent layers may read
    return [_leak(m, p, limits[name])] if p.effect > limits[name] else []


def _leak(m: Measurement, p: Padding, limit: float) -> Finding:
    where = f"; the first to use it is {p.operation}{' in ' + p.at if p.at else ''}" if p.operation else ""
    what = "the output for a sequence" if p.pooled else "the output at real places"
    done = "holds other tokens" if p.before else "is cut off"
    message = (
        f"padding leaks: {what} changes by {number(p.effect)} of what outputs differ by (limit {number(limit)}) when its padding "
        f"{done}{where}. {percent(p.share)} of the places are padding, and {TOLD[p.told]}"
    )
    failed = probe_failure(m)
    return found(
        "error" if failed else "warning",
        message,
        layers=[p.at] if p.at else [],
        location=p.site,
        evidence=Evidence("change of the output without its padding", p.effect, limit, ">", "of the spread of the outputs", p.at or None),
        remedies=_cure(p),
        confirmed=failed,
    )


def _inverted(p: Padding) -> Finding:
    where = f" {p.operation}{' in ' + p.at if p.at else ''} is the first to use it." if p.operation else ""
    return found(
        "error",
        f"the mask of padding is inverted: other tokens at the real positions of a sequence change no output (limit {number(ROUNDING)}), "
        f"tokens at its padded positions do.{where} {percent(p.share)} of the positions are padding",
        layers=[p.at] if p.at else [],
        location=p.site,
        evidence=Evidence("change of the output with other tokens at the real positions", 0.0, ROUNDING, "<=", "of the output"),
        remedies=Remedy("mask-padding", "mask what is padding: key_padding_mask is True where a key is to be left out, tokens == padding"),
        confirmed=BY_VALUE,
    )


def _cure(p: Padding) -> Remedy:
    if p.operation in RECURRENT:
        text = "pack the sequences: pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)"
    elif p.operation in ATTENTIONS or p.operation in PRODUCTS:
        text = "mask padded keys: key_padding_mask of nn.MultiheadAttention, src_key_padding_mask of encoders, -inf in scores of your own"
    elif p.operation in ("__getitem__", "select", "index_select"):
        text = "read the last real place, out[torch.arange(len(out)), lengths - 1], or pack the sequences with pack_padded_sequence"
    else:
        text = "leave padded places out: (x * mask).sum(1) / mask.sum(1) for a mean, masked_fill(~mask, -inf) before a maximum or a softmax"
    return Remedy("mask-padding", text)
