from gradcheck.analysis.wording import BY_VALUE, number
from gradcheck.rules.sequence import LEAK, NEXT_TOKEN, _by_loss
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.types.sequence import TokenStream

ATTENTIONS = ("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention", "softmax")
PRODUCTS = ("matmul", "__matmul__", "bmm", "einsum", "baddbmm")
SHAPES = ("reshape", "view", "flatten", "unflatten")
NORMS = ("layer_norm", "group_norm", "instance_norm", "batch_norm", "rms_norm")
SUMMARY = ", in a summary of the whole sequence, such as auto-encoders have on purpose"
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@rule("SEQ001", up_to="error", needs=("sequence",), wants=("probe",), limits={"next_token": NEXT_TOKEN, "leak": LEAK})
def future_leak(m: Measurement, limits: Limits) -> Verdict:
    """A model that is trained to predict the next token sees the tokens that come later.

    ## What it finds
    Language models and decoders whose output at a position depends on tokens after it: attention without its causal mask, with
    one that is shifted or too weak, heads merged by `view` without transposing back, convolutions that are padded on both
    sides, bidirectional recurrent layers, normalization or averages over the positions. It names the layer and the call where
    later tokens are first seen.

    ## Why it matters
    The answer is in the input. The loss falls, further than it should, on the validation data too; but the model has only learned
    to look the next token up, and where there is none, as in generation, it fails.

    ## How it is measured
    First, whether the next token is wanted: the targets of a cross entropy, or the tokens whose scores are gathered, are laid
    beside the tokens that each embedding of the model reads. Where the target is the token one position further, in evaluation
    mode, after the short training, the tokens after a position are replaced by others, for three positions. Masks and lengths
    stay as they are: tokens are changed where the embedding reads them. The change of the logits at supervised positions up to
    that one is compared with the change after it. Where they do change, the two passes are compared operation by operation. A
    target may be the next token of two inputs, as in a translation to the same language: one that does not leak is enough. A
    loss that is computed chunk by chunk is put together; for a function that takes hidden states and the head's weight
    (`linear_cross_entropy`, a custom Function) the logits are computed again. Where the targets are tokens that are read, and
    no such loss was seen, nothing is said: not measured.

    Silent, since the next token is not wanted: masked language models, taggers, denoising, auto-encoders. In prefix language
    models only supervised positions count; padding before a sequence does not: masked as it is, it attends to all positions
    alike.

    ## Limits and their sources
    `leak` 0.01: the largest change at one position up to t over the root mean square change after t. Calibrated on small models
    after 60 steps. Healthy, at most 1e-5: attention with `is_causal`, with additive, Boolean and finite (-1e9) masks, with
    rotary positions, ALiBi and a window, linear attention, causal and dilated convolutions, LSTM, GRU, a state-space scan, a
    long convolution by FFT, `nn.TransformerEncoderLayer`, `nn.MultiheadAttention`, running means, `nn.Transformer` that copies
    and one that reverses, a prefix language model, an auto-encoder with a teacher-forced decoder; and, after 8 steps, 46 causal
    language models of Transformers (attention of every kind, Mamba, RWKV, mixtures of experts) and 11 encoder-decoders: 0.
    Faulty: no mask 1.5, a mask that is one position too wide 1.5, transposed 1.2, -1 for minus infinity 0.85, set after the
    softmax 0.31, merged heads 1.6, convolution on both sides 1.4, bidirectional 0.64, mean over positions 0.44, normalization
    over positions 0.15. `next_token` 0.99: share of the supervised positions at which the target is the next token; at 16 of
    them or more it must differ from the token itself.

    A warning where later tokens come by way of a summary without positions, as the latent vector of an auto-encoder is whose
    decoder is fed the tokens; an error otherwise, also where earlier tokens change nothing later: that reads backwards.

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
        evidence=Evidence(
            "change at or before the place where the tokens change", leak, limits["leak"], ">", "of that after it", s.at or None
        ),
        remedies=_cure(s),
        confirmed=BY_VALUE,
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
