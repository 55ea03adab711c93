import re
from collections.abc import Sequence

from gradcheck.analysis.convergence import any_learned, training_outcome
from gradcheck.analysis.layer_groups import gate_makers, holders, is_matrix, settled_step
from gradcheck.analysis.wording import BY_VALUE, layers_in_words, number, percent, probe_failure
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter, ZeroDerivative
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


def never_moved(p: Parameter, holder: Layer) -> bool:
    """Whether its gradient was exactly zero at every measured step although its layer had something to do."""
    idle = all(s.output is not None and s.output.count == 0 for s in holder.snapshots) if holder.snapshots else False
    return bool(p.steps) and not idle and all(s.gradient_norm == 0 for s in p.steps)


def weights_in_use(m: Measurement) -> list[tuple[Parameter, Layer]]:
    """Trainable weight matrices that the loss depends on, with the layer that holds each; not those of embeddings and gates."""
    holder, aside = holders(m), gate_makers(m)
    reached = [p for p in m.parameters if p.trainable and p.used and is_matrix(p) and any(s.gradient_norm is not None for s in p.steps)]
    held = [(p, holder[p.name]) for p in reached if p.name in holder]
    return [(p, x) for p, x in held if x.kind != "embedding" and x.name not in aside]


def zero_severity(m: Measurement, share: float, upstream: bool, limits: Limits) -> tuple[Severity, str]:
    if failure := probe_failure(m):
        return "error", failure
    much = share >= limits["error_share"]
    # A model may learn with idle experts or branches, but not when everything before some layer is cut off.
    if much and (upstream if training_outcome(m) == "learns" or any_learned(m) else True):
        return "error", BY_VALUE
    few = training_outcome(m) == "learns" and share < limits["warning_share"] and not upstream
    return ("info" if few else "warning"), ""


# The weights between states of a recurrent layer's reverse direction. Its output at the last position is that of its first step.
REVERSE = re.compile(r"weight_hh_l\d+_reverse$")
STEPS = frozenset(("sign", "round", "floor", "ceil", "trunc"))
READ_FIRST = "the reverse direction is read at its first step only, whose state before is 0: it has seen one position of the sequence"
WHOLE = "read the reverse direction where it has seen the whole sequence: from h_n, or its half of the output at position 0"


@rule(
    "GRAD004",
    up_to="error",
    needs=("parameters", "graph", "probe"),
    limits={
        "error_share": Limit(
            0.5, "of the weight matrices", "half of the model stays at its random start; 54 of 54 healthy networks have 0 by step 3"
        ),
        "warning_share": Limit(
            0.1, "of the weight matrices", "benchmarks/zoo.py: four of 177 healthy models keep 1 to 9 % that their data never use"
        ),
        "settled_step": Limit(3, "steps", "54 of 54 healthy networks have no zero gradient left after 3 steps"),
    },
    explains=("OPT002", "LOSS005"),
)
def zero_gradient(m: Measurement, limits: Limits) -> Verdict:
    """Weights whose gradient is exactly zero at every step.

    ## What it finds
    Trainable weight matrices that the loss depends on, whose gradient is exactly zero before the first step and
    in every later measurement: behind dead units, rounding, comparisons, clamps that always cut, or a product
    with zero.

    ## Why it matters
    They keep their initial values forever.

    ## How it is measured
    The 2-norm of each weight's gradient at the measured steps, and the places of the first pass whose derivative is zero:
    torch.sign, round, floor, ceil, trunc, a relu or clamp that changes all that it is given, products with a tensor of zeros
    that is not trained, and products of two trained factors that are both zero (an adapter with both of its matrices at 0).
    Zero at the start alone is healthy: zero-initialised heads, residual branches, adapters and gates open after the first steps.
    Embeddings, biases, gains, sigmoid gates, and layers that were handed no rows (idle experts) are exempt. Parameters that
    the autograd graph does not reach are `disconnected-parameters`.

    ## Limits and their sources
    A warning; an error when the probe training fails, or when `error-share` 50 % of the weight matrices are
    stuck (for a model that learns: only when they are all that comes before some layer). Below `warning-share` 10 %
    it is advice when the model learns. `settled-step` 3: no
    healthy network of 54 had a zero gradient left after three steps.

    ## When to ignore it
    When these are experts or branches that the scanned batches do not use.

    ## Example
    ```python
    codes = torch.round(self.encoder(x))  # the derivative of round is zero
    return self.decoder(codes)
    ```

    ## Use instead
    ```python
    z = self.encoder(x)
    codes = z + (torch.round(z) - z).detach()  # straight-through
    return self.decoder(codes)
    ```

    ## References
    Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons.
    """
    weights = weights_in_use(m)
    if not weights:
        return not_applicable("no trainable weight matrix that the loss depends on")
    if settled_step(m, int(limits["settled_step"])) is None:
        return not_measured(f"no step from {number(limits['settled_step'])} on was measured, and zeros before it are healthy")
    stuck = [(p, x) for p, x in weights if never_moved(p, x)]
    if not stuck:
        return []
    share, last = len(stuck) / len(weights), max(x.order for _, x in stuck)
    upstream = all(x.order > last for p, x in weights if not never_moved(p, x))
    severity, confirmed = zero_severity(m, share, upstream, limits)
    worst = max((x for _, x in stuck), key=lambda x: x.order)
    steps = max(s.step for s in stuck[0][0].steps)
    layers = tuple(dict.fromkeys(x.name for _, x in sorted(stuck, key=lambda pair: pair[1].order)))
    blocks = blocking(m, frozenset(p.name for p, _ in stuck))
    backwards = not blocks and all(x.kind == "recurrent" and REVERSE.search(p.name) for p, x in stuck)
    reason = f"; {_cause(blocks)}" if blocks else f"; {READ_FIRST}" if backwards else ""
    message = (
        f"gradient is exactly 0 from step 0 to step {steps} for {len(stuck)} of {len(weights)} weights ({percent(share)}): "
        f"{_named(stuck, weights)} will never change{'; nothing passes back beyond ' + worst.name if upstream else ''}{reason}"
    )
    evidence = (
        Evidence("weights with zero gradient", share, limits["error_share"], ">=", "of the weight matrices", worst.name),
        Evidence("largest gradient norm of theirs", 0.0, 0.0, "=", "", worst.name),
    )
    place = (blocks[0].site if blocks else None) or worst.site
    remedies = (Remedy("check-data-path", WHOLE),) if backwards else _remedies(blocks, worst.name)
    return [found(severity, message, layers=layers, location=place, evidence=evidence, remedies=remedies, confirmed=confirmed)]


def _named(stuck: Sequence[tuple[Parameter, Layer]], weights: Sequence[tuple[Parameter, Layer]]) -> str:
    """The layers that are stuck; of one that is so in part, its weights."""
    moving = {x.name for p, x in weights if not never_moved(p, x)}
    ordered = sorted(stuck, key=lambda pair: pair[1].order)
    return layers_in_words(list(dict.fromkeys(p.name if x.name in moving else x.name for p, x in ordered)))


def blocking(m: Measurement, stuck: frozenset[str]) -> list[ZeroDerivative]:
    """The calls, all at one place, whose derivative of zero lies behind the most of these parameters; none when none is known."""
    places: dict[object, list[ZeroDerivative]] = {}
    for one in m.zero_derivatives:
        if any(name in stuck for name in one.parameters):
            places.setdefault((one.operation, one.site), []).append(one)
    return max(places.values(), key=lambda group: len(stuck & {n for one in group for n in one.parameters}), default=[])


def _cause(blocks: Sequence[ZeroDerivative]) -> str:
    first = blocks[0]
    if first.operation == "zeros":
        factors = layers_in_words(_factors(blocks))
        return f"{factors} are multiplied with each other and both 0, and the gradient of each is a product with the other"
    if first.factor:
        return f"{layers_in_words([b.factor for b in blocks])}, which they are multiplied by, is 0 and is not trained"
    if first.operation not in STEPS:
        return f"{first.operation} after them changes every entry that it is given, and passes no gradient back"
    return f"torch.{first.operation} after them has the derivative 0"


def _factors(blocks: Sequence[ZeroDerivative]) -> list[str]:
    return [name for i in (0, 1) for name in dict.fromkeys(b.parameters[i] for b in blocks)]


def _remedies(blocks: Sequence[ZeroDerivative], last: str) -> tuple[Remedy, ...]:
    if not blocks:
        text = f"look for what has a zero derivative after {last}: rounding, a comparison, a clamp, dead units"
        return (Remedy("remove-detach", text, "advice"),)
    if blocks[0].operation == "zeros":
        text = f"initialise one of the two at random, {layers_in_words([b.parameters[0] for b in blocks])}, and leave the other at 0"
        return (Remedy("break-symmetry", text, "safe"),)
    if blocks[0].factor:
        text = f"make {layers_in_words([b.factor for b in blocks])} an nn.Parameter, which starts at 0 and learns"
        return (Remedy("trainable-scale", text, "unsafe"),)
    operation = blocks[0].operation
    if operation not in STEPS:
        text = f"look at what {operation} is given: no entry lies within its bounds"
        return (Remedy("check-arguments", text, "advice"),)
    slope = "clamp(-1, 1)" if operation == "sign" else "the identity"
    text = f"keep the values of torch.{operation} and take the derivative of {slope} (straight-through)"
    return (Remedy("straight-through", text, "safe"),)
