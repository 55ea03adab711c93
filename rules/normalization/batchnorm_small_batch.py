from gradcheck.analysis.wording import BY_VALUE, falls_short, layers_in_words, number, probe_failure
from gradcheck.rules.normalization import GAP, NO_BATCH_NORM, batch_norms, evaluation_gap, gap_in_words, norm_names
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule
from gradcheck.types.structure import Norm

CHANCE = Limit(0.9, "of chance", "random networks above it after 50 steps fail: precision 0.89 to 0.94")


def useless_in_evaluation(m: Measurement, limits: Limits) -> bool:
    """Whether what was learned is lost in evaluation mode."""
    s = m.normalization
    return s is not None and m.chance is not None and evaluation_gap(m, limits) and s.evaluated >= limits["chance"] * m.chance


@rule(
    "NORM003",
    up_to="error",
    needs=("normalization",),
    limits={
        "warning_values": Limit(16, "values per feature", "heuristic: the error of a variance over 16 values is 35 %"),
        "error_values": Limit(4, "values per feature", "of 2 values only the sign of their difference is left; torch refuses 1"),
        "chance": CHANCE,
    }
    | GAP,
)
def batchnorm_small_batch(m: Measurement, limits: Limits) -> Verdict:
    """Batch normalization over so few values that their mean and variance are noise.

    ## What it finds
    Batch normalizations in training mode whose statistics are taken over fewer than 16 values per feature, and
    batches that torch refuses because there is only one. Frozen normalizations and data that gradcheck made up
    are not judged.

    ## Why it matters
    A sample's output then depends on the few that it happens to share the batch with. The running statistics
    fit no batch, and evaluation differs from training. A last batch of one sample ends the epoch with an error.

    ## How it is measured
    Values per feature: samples times positions of each call in the first step. After the probe training, the
    trained copy's loss in evaluation mode is compared with its loss with each batch's own statistics, dropout
    off.

    ## Limits and their sources
    One value: an error. Fewer than `error-values` 4: a warning; an error when the probe training fails, or when
    the loss in evaluation mode is more than `evaluation-ratio` 1.5 times the other, `evaluation-margin` 0.1 of chance
    above it, and no better than `chance` 0.9 of a constant prediction's. Fewer than `warning-values` 16: a warning when the
    probe does not learn clearly or evaluation mode is that much worse, else advice. On 8x8 digits a batch of 2
    images (32 to 128 values per feature) cost less than 1 %.

    ## When to ignore it
    When gradients are exchanged between devices and the batch normalization is synchronised there.

    ## Example
    ```python
    DataLoader(dataset, batch_size=2)  # with nn.BatchNorm1d
    ```

    ## Use instead
    ```python
    DataLoader(dataset, batch_size=64, drop_last=True)  # or nn.GroupNorm, nn.LayerNorm
    ```

    ## References
    Wu and He 2018, Group Normalization; Summers and Dinneen 2020, Four Things Everyone Should Know.
    """
    if not any(n.batch for n in m.norms):
        return NO_BATCH_NORM
    if not m.data.given:
        return not_applicable("the batches are gradcheck's own")
    if refused := [n for n in m.norms if n.raised is not None]:
        return [_refused_finding(m, refused[0])]
    few = [n for n in batch_norms(m) if n.of_batch and n.values is not None and n.values < limits["warning_values"]]
    if not few:
        return []
    severity, confirmed = _few_severity(m, min(n.values or 0.0 for n in few), limits)
    return [_few_finding(m, few, severity, confirmed, limits)]


def _few_severity(m: Measurement, values: float, limits: Limits) -> tuple[Severity, str]:
    gap = evaluation_gap(m, limits)
    if values >= limits["error_values"]:
        return ("warning" if gap or falls_short(m) else "info"), ""
    if failure := probe_failure(m):
        return "error", failure
    return ("error", f"by the trained copy: {gap_in_words(m)}") if useless_in_evaluation(m, limits) else ("warning", "")


def _few_finding(m: Measurement, few: list[Norm], severity: Severity, confirmed: str, limits: Limits) -> Finding:
    worst = min(few, key=lambda n: n.values or 0.0)
    values = worst.values or 0.0
    limit = limits["error_values" if values < limits["error_values"] else "warning_values"]
    measured = f" ({gap_in_words(m)})" if m.normalization else ""
    message = (
        f"{layers_in_words(norm_names(few))} take mean and variance over {number(values)} values per feature (limit {number(limit)}; "
        f"batches of {m.data.batch_size}): they are noise, and evaluation differs from training{measured}"
    )
    return found(
        severity,
        message,
        layers=norm_names(few),
        location=worst.site,
        evidence=Evidence("values per feature", values, limit, "<", "", worst.layer),
        remedies=_batch_remedies(m, values, limits),
        confirmed=confirmed,
    )


def _batch_remedies(m: Measurement, values: float, limits: Limits) -> tuple[Remedy, ...]:
    wanted = max(2, round(m.data.batch_size * limits["warning_values"] / max(values, 1e-9)))
    larger = Remedy("larger-batch", f"train on batches of at least {wanted} samples", "advice")
    other = Remedy("batch-free-normalization", "replace BatchNorm by GroupNorm or LayerNorm, which need no batch", "unsafe")
    return larger, other


def _refused_finding(m: Measurement, norm: Norm) -> Finding:
    """The batch that torch refuses to normalise."""
    number_of_batch = len(m.probe.losses) % max(1, m.data.batches)
    message = (
        f"batch {number_of_batch} leaves {norm.layer or 'the batch normalization'} 1 value per feature, of which there is no variance: "
        f"torch raises, and training ends in step {len(m.probe.losses)}"
    )
    drop = Remedy("drop-last", "give the DataLoader drop_last=True, or batches of at least 2 samples", "advice")
    other = Remedy("batch-free-normalization", "replace BatchNorm by GroupNorm or LayerNorm, which need no batch", "unsafe")
    evidence = Evidence("values per feature", norm.values or 1.0, 2.0, "<", "", norm.layer or None)
    return found("error", message, layers=(norm.layer,), location=norm.site, evidence=evidence, remedies=(drop, other), confirmed=BY_VALUE)
