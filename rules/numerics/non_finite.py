import math
from collections.abc import Sequence

from gradcheck.analysis.layer_groups import layer_site
from gradcheck.analysis.wording import BY_VALUE, layers_in_words, number
from gradcheck.rules.numerics import _cure, _evidence, _harmful, _inputs, _kind, _losses, _place, _severity
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limits, Verdict, found, not_measured, rule
from gradcheck.types.training import NonFinite

DOMAIN = {
    "log": "log(clamp(x, min=1e-8)), or log_softmax / logsigmoid in place of log of a probability",
    "log2": "log2(clamp(x, min=1e-8))",
    "log10": "log10(clamp(x, min=1e-8))",
    "log1p": "an argument that is clamped above -1",
    "sqrt": "sqrt(clamp(x, min=0) + 1e-8)",
    "rsqrt": "rsqrt(clamp(x, min=0) + 1e-8)",
    "div": "a denominator that is clamped away from 0",
    "reciprocal": "a denominator that is clamped away from 0",
    "pow": "a base that is clamped above 0",
    "exp": "an argument that is bounded above, or log-space arithmetic",
    "acos": "clamp(x, -1, 1)",
    "asin": "clamp(x, -1, 1)",
    "atanh": "an argument that is clamped inside (-1, 1)",
    "std": "more than one value for each std, or var(correction=0)",
}
# What it was about the arguments that made the result NaN or infinite (instrument/domain.py), and how to avoid it.
REASONS = {
    "zero denominators": (
        "the denominator is 0 in {count} of {of} entries",
        "keep the denominator away from 0 with clamp(min=1e-8), or cancel it where the numerator is 0 too",
    ),
    "not above zero": ("its argument is not above 0 in {count} of {of} entries", "log(clamp(x, min=1e-8))"),
    "masked rows": (
        "every key is masked in {count} of {of} rows of the mask",
        "leave at least one key in each row of the mask: for a sample of nothing but padding, keep its first position or drop it",
    ),
    "long targets": (
        "the target of {count} of {of} samples is longer than its input, counting a blank between equal labels",
        "leave these samples out, give them longer inputs (less downsampling), or pass zero_infinity=True",
    ),
    "no target": ("all {count} targets are ignored", "leave out batches in which every target is ignore_index"),
    "empty": ("it is taken over no entry at all", "skip the term where its mask selects nothing, or divide a sum by clamp(count, min=1)"),
    "one value": ("it is taken over a single value", "std over more than one value, or correction=0"),
}


@rule(
    "NUM001",
    up_to="error",
    needs=("optimizer",),
    wants=("numerics", "parameters"),
    explains=("NUM002", "LOSS003", "LOSS005", "GRAD001", "GRAD002", "GRAD004", "ACT001", "ACT002", "ACT004", "OPT002"),
    explains_here=("LOSS006",),
)
def non_finite(m: Measurement, limits: Limits) -> Verdict:
    """An operation in the forward pass or in the loss gives NaN or infinity.

    ## What it finds
    The first operation whose inputs are finite and whose result is not, with its layer, line and step; weights that hold
    NaN or infinity before the first step; and a loss that is not finite.

    ## Why it matters
    One NaN in the loss turns every gradient, and with the next step every weight, into NaN. Training is over.

    ## How it is measured
    Every operation's result is checked while the step that gave a non-finite loss is run again. Infinities that never
    reach the loss or a gradient, as in attention masks, do not count. What a script computes without gradient is checked while
    it runs: weights, targets and normalised data whose NaN comes from a division or logarithm are traced back to its line.
    The arguments of the operation say why: denominators of 0, rows of a mask without any key, targets that are longer
    than their input, a mean over nothing. The script's own losses count too.

    ## Limits and their sources
    None: one value is enough. At the first step it is an error by the value alone. Later in the probe it is an error
    when the optimizer is the user's; with an optimizer that gradcheck assumed, a warning. On inputs that gradcheck made up
    it is a warning too: they may lie outside what the model is meant for. When lower rates stay finite,
    the learning rate is the cause (`learning-rate-too-high`), and this finding is shown under it.

    ## When to ignore it
    When the training loop skips such steps on purpose, as loss scaling for float16 does.

    ## Example
    ```python
    loss = -torch.log(score).mean()  # score may be 0 or negative
    ```

    ## Use instead
    ```python
    loss = -nn.functional.logsigmoid(logit).mean()
    ```

    ## References
    PyTorch documentation: `torch.autograd.detect_anomaly`, "Numerical accuracy".
    """
    poisoned = [p for p in m.parameters if p.steps and p.steps[0].step == 0 and not math.isfinite(p.steps[0].norm)]
    if poisoned:
        return [_poisoned_weights(m, poisoned)]
    if not _harmful(m):
        lacking = next((n for n in m.not_measured if n.what in ("numerics", "parameters")), None)
        return not_measured(lacking.why) if lacking is not None else []
    forward = sorted((e for e in m.non_finite if e.direction != "backward"), key=lambda e: e.step)
    backward = min((e.step for e in m.non_finite if e.direction == "backward"), default=None)
    if forward and (backward is None or forward[0].step <= backward):
        return [_forward_event(m, forward)]
    step = next((i for i, x in enumerate(_losses(m)) if not math.isfinite(x)), None)
    if forward or backward is not None or step is None:
        return []
    return [_unlocated(m, step)]


def _forward_event(m: Measurement, events: Sequence[NonFinite]) -> Finding:
    first = events[0]
    severity, confirmed = _severity(m, first.step)
    more = f"; {len(events) - 1} more operations do" if len(events) > 1 else ""
    name = _plain(first.operation)
    guard = _cure(DOMAIN, first.operation)
    remedy = f"keep {name} inside its domain: {guard}" if guard else f"bound what reaches {name}, or lower the scale of the weights"
    if first.reason is not None:
        remedy = REASONS[first.reason[0]][1]
    return found(
        severity,
        f"{name}{_place(first)}{_on_rank(first.rank)} gives {_kind(first)} at step {first.step}{_because(first)}{more}: "
        "it turns the loss and every gradient behind it non-finite, and training ends there",
        layers=(first.layer,) if first.layer else (),
        location=first.site or layer_site(m, first.layer),
        evidence=_evidence(first),
        remedies=Remedy("guard-domain", remedy, "unsafe"),
        confirmed=confirmed,
    )


def _poisoned_weights(m: Measurement, parameters: Sequence[Parameter]) -> Finding:
    names = [p.name for p in parameters]
    layer = parameters[0].layer
    return found(
        "error",
        f"the initial weights of {layers_in_words(names)} are not finite ({len(names)} of {len(m.parameters)} parameters; limit 0): "
        "every output after them is NaN before the first step",
        layers=tuple(dict.fromkeys(p.layer for p in parameters)),
        location=layer_site(m, layer),
        evidence=Evidence("parameters with NaN or infinity at the start", len(names), 0, ">", f"of {len(m.parameters)}"),
        remedies=Remedy(
            "he-init", "initialise them again, or load a checkpoint without NaN; an uninitialised torch.empty is a common source", "safe"
        ),
        confirmed=BY_VALUE,
    )


def _unlocated(m: Measurement, step: int) -> Finding:
    severity, confirmed = _severity(m, step)
    loss = m.probe.losses[step]
    site = next((c.site for c in m.losses if c.site), None) or (m.loop.backward_site if m.loop is not None else None)
    return found(
        severity,
        f"the loss is {number(loss)} at step {step}{_on_rank(_rank_of_loss(m, step))} (it must be finite); "
        "no single operation was seen to cause it: training ends there",
        location=site,
        evidence=Evidence("loss", loss, None, "=", f"at step {step}"),
        remedies=Remedy("guard-domain", "run the step under torch.autograd.detect_anomaly() to find the operation", "advice"),
        confirmed=confirmed,
    )


def _on_rank(rank: int | None) -> str:
    return f" on rank {rank}" if rank is not None else ""


def _rank_of_loss(m: Measurement, step: int) -> int | None:
    """Of a distributed training: the one rank whose loss was not finite there; None where all were, or others."""
    ranks = [x.rank for x in m.ranks.non_finite if x.step == step] if m.ranks is not None else []
    return ranks[0] if len(ranks) == 1 else None


def _plain(operation: str) -> str:
    """How a program writes it: "a division", not "__truediv__"."""
    name = operation.strip("_")
    return {
        "div": "a division",
        "truediv": "a division",
        "rtruediv": "a division",
        "itruediv": "a division",
        "matmul": "a matrix product",
    }.get(name, name)


def _because(event: NonFinite) -> str:
    if event.reason is None:
        return _inputs(event)
    what, count, of = event.reason
    return f" ({REASONS[what][0].format(count=count, of=of)})"
