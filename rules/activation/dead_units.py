from gradcheck.analysis.convergence import any_learned, training_outcome
from gradcheck.analysis.layer_groups import by_site, gate_makers, names
from gradcheck.analysis.wording import BY_VALUE, layers_in_words, number, percent, probe_failure, quoted
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


def dead_share(layer: Layer) -> float:
    return (layer.dead_units or 0) / layer.units if layer.units else 0.0


@rule(
    "ACT002",
    up_to="error",
    needs=("units", "graph", "probe"),
    limits={
        "warning_share": Limit(
            0.5, "of the units", "healthy trained networks reach 0.05 to 0.19 at 64 samples and more; SageMaker's default"
        ),
        "error_share": Limit(0.8, "of the units", "networks that a rate of 0.03 to 0.1 with Adam broke: 0.78 to 0.94"),
        "samples": Limit(256, "samples x positions", "at 4 samples 27 % of a healthy network's units look dead, at 64 19 %, at 1400 14 %"),
        "samples_one_batch": Limit(1024, "samples x positions", "the same, for a single batch"),
        "samples_severe": Limit(64, "samples x positions", "at 64 a healthy network seems to have 19 % dead units, far from 80 %"),
        "batches": Limit(2, "batches", "a unit may have nothing to do in one batch"),
    },
    explains=("GRAD004", "OPT002", "GRAPH008", "LOSS005"),
)
def dead_units(m: Measurement, limits: Limits) -> Verdict:
    """Units (channels) of ReLU-like layers that are never active, whatever the input.

    ## What it finds
    ReLU-like layers most of whose units gave no positive value on any sample or position of any measured batch.
    Gates, and what feeds them, are exempt. Sparse activity is healthy and does not count.

    ## Why it matters
    A dead unit passes neither signal nor gradient, and no gradient means that it stays dead. When all units of
    a layer are dead and nothing bypasses it, everything before it stops learning.

    ## How it is measured
    Units without any positive output over all samples and positions of at least `samples` 256 in `batches` 2
    batches (or `samples-one-batch` 1024 in one); `samples-severe` 64 are enough to see that more than
    `error-share` of the units are dead. Compared with the same count before the first step: dead from the start
    points to the initialisation, killed during the probe training to the learning rate.

    ## Limits and their sources
    `warning-share` 50 % of a layer's units: a warning. `error-share` 80 %: an error if the probe training
    fails. All units of a layer that nothing bypasses: an error unless the probe learns. When the probe learns,
    a share below `error-share` is advice: SqueezeNet reaches 70 % in a narrow layer and trains. Other healthy
    networks reach 5 to 19 %.

    ## When to ignore it
    In pruned models, and in layers that these batches do not use.

    ## Example
    ```python
    nn.init.constant_(self.fc.bias, -10.0)  # relu(self.fc(x)) is zero for every x
    ```

    ## Use instead
    ```python
    nn.init.zeros_(self.fc.bias)
    ```

    ## References
    Lu et al. 2019, Dying ReLU and Initialization.
    """
    aside = gate_makers(m)
    layers = [x for x in m.of_kind("activation") if x.units and x.dead_units is not None and not x.gate and x.name not in aside]
    if not layers:
        return not_applicable("no ReLU-like layer whose units can be counted")
    judged = [x for x in layers if _looked_at_enough(x, limits)]
    if not judged:
        most = max(x.effective_samples for x in layers)
        return not_measured(
            f"{most} samples x positions are too few to call a unit dead (needed: {number(limits['samples'])} in two batches)"
        )
    faulty = [x for x in judged if dead_share(x) >= limits["warning_share"]]
    return [_dead_finding(m, group, limits) for group in by_site(faulty)]


def _looked_at_enough(x: Layer, limits: Limits) -> bool:
    needed = limits["samples_severe"] if dead_share(x) >= limits["error_share"] else limits["samples"]
    several = x.effective_samples >= needed and x.dead_batches >= limits["batches"]
    return several or x.effective_samples >= limits["samples_one_batch"]


def _dead_severity(m: Measurement, group: list[Layer], limits: Limits) -> tuple[Severity, str]:
    severe = max(map(dead_share, group)) >= limits["error_share"]
    if training_outcome(m) == "learns" or (training_outcome(m) == "unknown" and not severe):
        return ("warning" if severe else "info"), ""
    if not severe:
        return "warning", ""
    if failure := probe_failure(m):
        return "error", failure
    shut = any(x.dead_units == x.units and not x.residual for x in group)
    return ("error", BY_VALUE) if shut and not any_learned(m) else ("warning", "")


def _dead_finding(m: Measurement, group: list[Layer], limits: Limits) -> Finding:
    worst = max(group, key=dead_share)
    share, total, dead = dead_share(worst), worst.units or 0, worst.dead_units or 0
    severity, confirmed = _dead_severity(m, group, limits)
    limit = limits["error_share"] if severity == "error" else limits["warning_share"]
    from_start = worst.dead_at_start is None or worst.dead_at_start >= 0.5 * dead
    message = (
        f"{dead} of {total} units ({percent(share)}; limit {percent(limit)}) of {quoted(worst.name)} are never active over "
        f"{worst.effective_samples} samples x positions{_since(worst)}: they pass neither signal nor gradient"
    )
    if len(group) > 1:
        message += f"; the same in {layers_in_words(names(group))}"
    return found(
        severity,
        message,
        layers=names(group),
        location=worst.site,
        evidence=Evidence("dead units", share, limit, ">=", "of the units", worst.name),
        remedies=_dead_remedies(m, from_start),
        confirmed=confirmed,
    )


def _since(x: Layer) -> str:
    if x.dead_at_start is None:
        return ""
    if x.dead_at_start >= (x.dead_units or 0):
        return ", all of them from the start"
    if x.dead_at_start == 0:
        return ", none of them at the start: the probe training killed them"
    return f", {x.dead_at_start} of them from the start, the others since the probe training"


def _dead_remedies(m: Measurement, from_start: bool) -> tuple[Remedy, ...]:
    leak = Remedy("replace-activation", "replace ReLU by LeakyReLU(0.01) or GELU: checkpoint keys stay the same", "unsafe")
    if from_start:
        return (Remedy("he-init", "initialise the layer before with kaiming_normal_ and zero biases", "safe"), leak)
    lower = f"lower the learning rate from {number(m.optimizer.lr)} to {number(m.optimizer.lr / 10)}, or warm it up"
    return (Remedy("lower-learning-rate", lower, "advice"), leak)
