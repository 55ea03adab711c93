from gradcheck.analysis.wording import BY_VALUE, percent, quoted
from gradcheck.rules.sequence import LEAK, NEXT_TOKEN, _by_loss
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule
from gradcheck.types.sequence import TokenStream


@rule("SEQ002", up_to="error", needs=("sequence",), wants=("probe",), limits={"same_token": NEXT_TOKEN, "own_effect": LEAK})
def labels_misaligned(m: Measurement, limits: Limits) -> Verdict:
    """The targets of a causal model are the tokens that it is given, or lie further ahead than the next one.

    ## What it finds
    Models that see no later token and are asked for the token that they have just been given: labels that nobody shifted, or a
    decoder that is fed its own labels. And models that are asked for a token two or more positions ahead: shifted by the
    script, and again by the model.

    ## Why it matters
    A token that is in the input is copied, and nothing else is learned: the loss falls to zero at once. A model that learned to skip
    tokens generates every second word.

    ## How it is measured
    As for SEQ001: the targets of a cross entropy beside the tokens that embeddings read, from 0 to 4 positions ahead, and other
    tokens after a position, in evaluation mode. Only models are judged in which no target is the next token, and whose output
    does not depend on later tokens but does depend on the token itself, as it does not in masked convolutions or where the
    model shifts its input. Nothing is said of models that see everything: copying may be what an auto-encoder is for.

    ## Limits and their sources
    `same_token` 0.99: share of the supervised positions. `own_effect` 0.01: the effect of the own token over that on all later
    places, and the most that later tokens may change. Calibration as for SEQ001; a masked convolution, an auto-encoder through
    a bottleneck, denoising and a tagger are silent, and 26 models with next tokens for targets. Not shifted: 1.0; a T5 fed with
    its labels: 0.97.

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
            f"is not the next token that {quoted(s.layer)} reads but the one {s.ahead} places on. The labels were shifted more than once: "
            "the model learns to skip tokens"
        )
        cure = Remedy("shift-labels", "shift the labels once: give the model the tokens themselves as labels where it shifts them itself")
    else:
        message = (
            f"the target is the token that the model is given: at {share} of {s.places} places (limit {percent(limits['same_token'])}) it "
            f"is the one that {quoted(s.layer)} reads there, and the output depends on it. Copying brings the loss to 0; nothing else "
            "is learned"
        )
        text = "shift the labels by one: feed tokens[:, :-1] and ask for tokens[:, 1:]; to a decoder give the labels shifted to the right"
        cure = Remedy("shift-labels", text)
    evidence = Evidence(f"targets that are {s.ahead} places ahead", s.agreement, limits["same_token"], ">=", "of the places", s.layer)
    return found(
        "error", message, layers=[s.layer], location=s.loss_site or s.read_site, evidence=evidence, remedies=cure, confirmed=BY_VALUE
    )
