from gradcheck.analysis.layer_groups import by_site, constant_at_start, names
from gradcheck.analysis.wording import BY_VALUE, also_in, layers_in_words, percent, quoted
from gradcheck.rules.initialization import _last_step, anything_moved, hidden_weights
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limit, Limits, NoVerdict, Verdict, found, not_applicable, rule
from gradcheck.types.structure import Shared


@rule(
    "INIT006",
    up_to="error",
    needs=("parameters", "graph"),
    limits={
        "duplicates": Limit(0.5, "of the units", "half of the layer's width is lost; random weights have no two equal rows"),
        "settled_step": Limit(3, "steps", "units whose gradients are equal over three steps no longer separate"),
    },
    explains=("LOSS005", "ACT004", "OPT002"),
)
def symmetric_units(m: Measurement, limits: Limits) -> Verdict:
    """Units of a layer with equal weights and equal gradients: they stay equal.

    ## What it finds
    Hidden linear, conv and recurrent layers in which more than half of the units (rows) have the same weights
    as another one, before the first step and still after several. Weights that are constant altogether are
    `degenerate-initialization`. Modules that are held under several names and are one, `[nn.Linear(64, 5)] * 4`, where each is
    called with the same input.

    ## Why it matters
    Equal units compute the same feature forever. The layer is only as wide as the number of its distinct units.

    ## How it is measured
    The share of rows that equal another row, in weights and gradients, before the first step and at the last
    measured one. Grouped and depthwise convolutions are exempt, and so are heads: their units separate at once,
    since their targets differ. Of a module that its parent holds more than once, the calls of the first pass with the same input, and
    the targets that loss functions compare their outputs with.

    ## Limits and their sources
    `duplicates` 50 % of the units, both before the first step and at the last measured one, `settled-step` 3 at
    least: an error. One module in place of several is an error where its equal outputs have different targets, else a warning; layers
    that share weights and are called one after another, as ALBERT's, are silent.

    ## When to ignore it
    When copies are supposed to diverge later, e.g. through dropout.

    ## Example
    ```python
    self.fc1.weight.data = row.repeat(64, 1)
    ```

    ## Use instead
    ```python
    nn.init.xavier_uniform_(self.fc1.weight)
    ```

    ## References
    Goodfellow et al. 2016, Deep Learning, section 8.4.
    """
    alike = _alike(m, limits)
    if not m.shared:
        return alike
    return [*map(_one_module, m.shared), *(() if isinstance(alike, NoVerdict) else alike)]


def _alike(m: Measurement, limits: Limits) -> Verdict:
    hidden = hidden_weights(m, int(limits["settled_step"]))
    weights = [(p, x) for p, x in hidden if x.groups == 1 and p.steps[0].duplicate_units is not None]
    if not weights:
        return not_applicable("no hidden weight whose units were compared before the first step and after several")
    faulty = {x.name: (x, p) for p, x in weights if _twins(p) > limits["duplicates"] and not constant_at_start(p)}
    if not faulty or not anything_moved(m):
        return []
    return [_symmetry_finding(group, {n: faulty[n][1] for n in names(group)}, limits) for group in by_site(x for x, _ in faulty.values())]


def _one_module(s: Shared) -> Finding:
    targets = f", and {s.targets} different targets are compared with them" if s.targets > 1 else ""
    return found(
        "error" if s.targets > 1 else "warning",
        f"{layers_in_words(s.names)} are one module (expected {len(s.names)}), called {s.calls} times with the same input: their outputs "
        f"are equal, before training and after it{targets}",
        layers=s.names,
        location=s.site,
        evidence=Evidence("different modules", 1, float(len(s.names)), "<"),
        remedies=Remedy("check-arguments", f"make {len(s.names)} of them: [... for _ in range({len(s.names)})], not [...] * n", "advice"),
        confirmed=BY_VALUE,
    )


def _twins(p: Parameter) -> float:
    """The smaller share of duplicate units of the first and the last measured step."""
    first, last = p.at(0), p.at(-1)
    return min((first.duplicate_units or 0.0), (last.duplicate_units or 0.0)) if first and last else 0.0


def _symmetry_finding(group: list[Layer], weights: dict[str, Parameter], limits: Limits) -> Finding:
    worst = max(group, key=lambda x: _twins(weights[x.name]))
    p = weights[worst.name]
    message = (
        f"{percent(_twins(p))} of the {p.shape[0]} units of {quoted(worst.name)} equal another unit (limit "
        f"{percent(limits['duplicates'])}), "
        f"in weights and gradients, still after {_last_step(p)} steps{also_in(group)}: they will stay equal"
    )
    remedy = Remedy("break-symmetry", f"initialise {quoted(p.name)} at random, e.g. with kaiming_normal_ or xavier_uniform_", "safe")
    evidence = Evidence("units that equal another one", _twins(p), limits["duplicates"], ">", "of the units", worst.name)
    return found("error", message, layers=names(group), location=worst.site, evidence=evidence, remedies=remedy, confirmed=BY_VALUE)
