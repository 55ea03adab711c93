"""SEQ: what is predicted from what in a sequence, and how much of it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradcheck.types.measurement import Measurement
    from gradcheck.types.sequence import Supervision, TokenStream

NEXT_TOKEN = Limit(
    0.99,
    "of the supervised places",
    "next-token targets agree by construction: 1.0 in all 26 models of the calibration; the rest is for tokens that a script replaces",
)
LEAK = Limit(
    1e-2,
    "of the effect on later places",
    "calibration: 25 causal models, trained for 60 steps, at most 1e-5 (rounding); 20 that leak, at least 0.15",
)
ATTENTIONS = ("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention", "softmax")
PRODUCTS = ("matmul", "__matmul__", "bmm", "einsum", "baddbmm")
SHAPES = ("reshape", "view", "flatten", "unflatten")
NORMS = ("layer_norm", "group_norm", "instance_norm", "batch_norm", "rms_norm")
SUMMARY = ", in a summary of the whole sequence, such as auto-encoders have on purpose"
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@rule(
    "SEQ001",
    "future-leak",
    up_to="error",
    needs=("sequence",),
    wants=("probe",),
    limits={"next_token": NEXT_TOKEN, "leak": LEAK},
)
def future_leak(m: Measurement, limits: Limits) -> Verdict:
    """A model that is trained to predict the next token sees the tokens that come later.

    ## What it finds
    Language models and decoders whose output at a place depends on tokens after it: attention without its causal mask, with one
    that is shifted or too weak, heads merged by `view` without transposing back, convolutions that are padded on both sides,
    bidirectional recurrent layers, normalization or averages over the places. It names the layer and the call where later
    tokens are first seen.

    ## Why it matters
    The answer is in the input. The loss falls, further than it should, on the validation data too; but what the model has learned
    is to look the next token up, and where there is none, as in generation, it fails.

    ## How it is measured
    First, whether the next token is wanted: the targets of a cross entropy, or the tokens whose scores are gathered, are laid beside
    the tokens that each embedding of the model reads. Where the target is the token one place further, in evaluation mode, after the
    short training, other tokens are put in after a place, for three places. Masks and lengths stay as they are: tokens are changed
    where the embedding reads them. Looked at are the logits at supervised places up to that one, against those after it. Where
    they change, the two passes are compared operation by operation. A target may be the next token of two inputs, as in a
    translation to the same language: one that does not leak is enough.

    Silent, since the next token is not wanted: masked language models, taggers, denoising, auto-encoders. In prefix language models
    only places count that are supervised.

    ## Limits and their sources
    `leak` 0.01: the largest change at one place up to t over the root mean square change after t. Calibrated on small models after 60
    steps. Healthy, at most 1e-5: attention with `is_causal`, with additive, Boolean and finite (-1e9) masks, with rotary
    positions, ALiBi and a window, linear attention, causal and dilated convolutions, LSTM, GRU, a state-space scan, a long
    convolution by FFT, `nn.TransformerEncoderLayer`, `nn.MultiheadAttention`, running means, `nn.Transformer` that copies and one that
    reverses, a prefix language model, an auto-encoder with a teacher-forced decoder; and, after 8 steps, 46 causal language models of
    Transformers (attention of every kind, Mamba, RWKV, mixtures of experts) and 11 encoder-decoders: 0. Faulty: no mask 1.5, a mask
    that is one place too wide 1.5, transposed 1.2, -1 for minus infinity 0.85, set after the softmax 0.31, merged heads 1.6, convolution
    on both sides 1.4, bidirectional 0.64, mean over places 0.44, normalization over places 0.15. `next_token` 0.99: share of the
    supervised places at which the target is the next token; at 16 of them or more it must differ from the token itself.

    A warning where later tokens come by way of a summary without places, as the latent vector of an auto-encoder is whose decoder
    is fed the tokens; an error else.

    ## When to ignore it
    When looking ahead is part of the task although its targets are the next tokens, as in a correction of the input's order.

    ## Example
    ```python
    y = F.scaled_dot_product_attention(q, k, v)
    ```

    ## Use instead
    ```python
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ```

    ## References
    Vaswani et al. 2017, Attention is all you need, section 3.1. Reports: huggingface/transformers#48745, keras-team/keras#23038,
    karpathy/minGPT#75.
    """
    streams = _ahead(m, limits, 1)
    if not streams:
        return not_applicable("no target is the next token of what the model reads")
    findings = []
    for mine in _by_loss(streams):
        least = min(mine, key=lambda s: s.leak if s.leak is not None else 0.0)
        if least.leak is not None and least.leak > limits["leak"]:
            findings.append(_sees(least, limits))
    if not findings and all(s.leak is None for s in streams):
        return not_measured("other tokens do not change the output")
    return findings


def _ahead(m: Measurement, limits: Limits, places: int) -> list[TokenStream]:
    streams = m.sequence.streams if m.sequence is not None else ()
    return [s for s in streams if s.ahead == places and s.agreement >= limits["next_token"]]


def _by_loss(streams: Sequence[TokenStream]) -> list[list[TokenStream]]:
    return [[s for s in streams if s.loss == loss] for loss in dict.fromkeys(s.loss for s in streams)]


def _sees(s: TokenStream, limits: Limits) -> Finding:
    leak = s.leak or 0.0
    where = f"{s.at or 'the model'} ({s.operation})" if s.operation else s.at or "the model"
    message = (
        f"the target is the next token, and the model sees it: other tokens after a place change its output there and before by "
        f"{number(leak)} of what they change after it (limit {number(limits['leak'])}); later tokens are first seen in {where}"
        f"{SUMMARY if s.pooled else ''}. The loss falls by looking the answer up, which generation cannot do"
    )
    return found(
        "warning" if s.pooled else "error",
        message,
        layers=[s.at] if s.at else [],
        location=s.site or s.loss_site,
        evidence=[
            Evidence("change at or before the place where the tokens change", leak, limits["leak"], ">", "of that after it", s.at or None)
        ],
        remedies=[_cure(s)],
        confirmed="" if s.pooled else BY_VALUE,
    )


def _cure(s: TokenStream) -> Remedy:
    if s.operation == "scaled_dot_product_attention":
        text = "let each place attend to itself and to earlier ones only: is_causal=True, or a mask that is lower triangular"
        return Remedy("causal-attention", text, "safe")
    if s.operation in SHAPES:
        text = "move the axis of the places back before the heads are merged: y.transpose(1, 2).reshape(B, T, C)"
        return Remedy("merge-heads", text, "safe")
    if s.operation in ATTENTIONS or s.operation in PRODUCTS:
        text = "mask the scores of later places with -inf before the softmax: torch.ones(T, T, dtype=torch.bool).triu(1)"
    elif s.operation.startswith("conv"):
        text = "pad on the left only, by (kernel_size - 1) * dilation, and set the convolution's own padding to 0"
    elif s.operation in RECURRENT:
        text = "use one direction: bidirectional=False"
    elif s.operation in NORMS:
        text = "normalize the features of each place by themselves: nn.LayerNorm over the last axis"
    else:
        text = f"let {s.at or 'the model'} use the place itself and earlier ones only"
    return Remedy("causal-mask", text)


@rule(
    "SEQ002",
    "labels-misaligned",
    up_to="error",
    needs=("sequence",),
    wants=("probe",),
    limits={"same_token": NEXT_TOKEN, "own_effect": LEAK},
)
def labels_misaligned(m: Measurement, limits: Limits) -> Verdict:
    """The targets of a causal model are the tokens that it is given, or lie further ahead than the next one.

    ## What it finds
    Models that see no later token and are asked for the token that they are just given: labels that nobody shifted, or a decoder
    that is fed its own labels. And such that are asked for a token two or more places ahead: shifted by the script, and again by
    the model.

    ## Why it matters
    A token that is in the input is copied, and nothing else is learned: the loss falls to zero at once. A model that learned to skip a
    token generates every second word.

    ## How it is measured
    As for SEQ001: the targets of a cross entropy beside the tokens that embeddings read, from 0 to 4 places ahead, and other tokens
    after a place, in evaluation mode. Judged are models in which no target is the next token, whose output does not depend on
    later tokens and, for the token itself, does depend on it: in masked convolutions, and where the model shifts its input itself,
    it does not. Models that see everything are silent: copying may be what an auto-encoder is for.

    ## Limits and their sources
    `same_token` 0.99: share of the supervised places. `own_effect` 0.01: the effect of the own token over that on all later places,
    and the most that later tokens may change. Calibration as for SEQ001; a masked convolution, an auto-encoder through a
    bottleneck, denoising and a tagger are silent, and 26 models with next tokens for targets. Not shifted: 1.0; a T5 fed with its
    labels: 0.97.

    ## When to ignore it
    When the task is to repeat the input, or to predict further ahead.

    ## Example
    ```python
    logits = model(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    ```

    ## Use instead
    ```python
    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    ```

    ## References
    Transformers documentation: `labels` of causal language models are shifted inside the model; of encoder-decoder models,
    `decoder_input_ids` are the labels shifted to the right.
    """
    streams = [s for s in (m.sequence.streams if m.sequence is not None else ()) if s.agreement >= limits["same_token"]]
    if not streams:
        return not_applicable("no target is a token that the model reads")
    if any(s.ahead == 1 for s in streams):
        return []
    causal = [s for s in streams if s.leak is not None and s.leak <= limits["own_effect"]]
    if len({s.ahead for s in causal}) > 1:
        return []  # several heads, each for a token further ahead
    return [_misplaced(mine[0], limits) for mine in _by_loss([s for s in causal if s.ahead or _own(s) > limits["own_effect"]])]


def _own(s: TokenStream) -> float:
    return s.next / s.later if s.later and s.next is not None else 0.0


def _misplaced(s: TokenStream, limits: Limits) -> Finding:
    share = percent(s.agreement)
    if s.ahead:
        message = (
            f"the targets are {s.ahead} tokens ahead: at {share} of {s.places} places (limit {percent(limits['same_token'])}) the target "
            f"is not the next token that {s.layer} reads but the one {s.ahead} places on. The labels were shifted more than once: "
            "the model learns to skip tokens"
        )
        cure = Remedy("shift-labels", "shift the labels once: give the model the tokens themselves as labels where it shifts them itself")
    else:
        message = (
            f"the target is the token that the model is given: at {share} of {s.places} places (limit {percent(limits['same_token'])}) it "
            f"is the one that {s.layer} reads there, and the output depends on it. Copying brings the loss to 0; nothing else is learned"
        )
        text = "shift the labels by one: feed tokens[:, :-1] and ask for tokens[:, 1:]; to a decoder give the labels shifted to the right"
        cure = Remedy("shift-labels", text)
    evidence = Evidence(f"targets that are {s.ahead} places ahead", s.agreement, limits["same_token"], ">=", "of the places", s.layer)
    return found(
        "error",
        message,
        layers=[s.layer],
        location=s.loss_site or s.read_site,
        evidence=[evidence],
        remedies=[cure],
        confirmed=BY_VALUE,
    )


@rule(
    "SEQ003",
    "nothing-supervised",
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
    explains=("NUM001", "LOSS005", "OPT001", "OPT002", "GRAD004", "LOOP001", "GRAPH008"),
)
def nothing_supervised(m: Measurement, limits: Limits) -> Verdict:
    """Batches, or sequences, in which every target is ignored.

    ## What it finds
    Calls of cross entropy or `nll_loss` whose targets are all the `ignore_index`: labels that were masked altogether, a prompt that
    fills the sequence, truncation that cut the answers off. In next-token training also the share of sequences without any target.

    ## Why it matters
    The mean over nothing is NaN. Frameworks that divide by something else, or filter what they log, show a loss of 0: the training goes
    on, with a loss that looks perfect, and learns nothing.

    ## How it is measured
    The targets of each loss over classes in some batches, as the loss gets them: the first batch; where some of its targets
    do not count, up to four; and the batch at which the short training met a loss that is no number.

    ## Limits and their sources
    None for batches: one without any target is an error where the loss is then no number, or when all that were looked at are so, and a
    warning else. `empty_rows` 0.3: sequences without a target, in next-token training only; short sequences of masked language
    models have none by chance.

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
    others = {id(s): any(o is not s and not o.empty for o in seen) for s in seen}
    findings = [_nothing(s) for s in seen if s.empty and not (others[id(s)] and s.finite and s.empty < s.batches)]
    rows = [s for s in seen if not s.empty and s.rows and s.empty_rows / s.rows > limits["empty_rows"]]
    return [*findings, *(_rows(s, limits) for s in rows)]


def _nothing(s: Supervision) -> Finding:
    certain = not s.finite or s.empty == s.batches
    becomes = "the loss is a number that says nothing" if s.finite else "a mean over nothing is NaN"
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
        evidence=[Evidence("batches without any target", s.empty, 0, ">", f"of {s.batches}")],
        remedies=[Remedy("supervise-targets", text)],
        confirmed=BY_VALUE if certain else "",
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
        evidence=[Evidence("sequences without any target", share, limits["empty_rows"], ">", "of the sequences")],
        remedies=[Remedy("supervise-targets", text)],
    )


RULES = (future_leak, labels_misaligned, nothing_supervised)
