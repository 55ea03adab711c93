from gradcheck.analysis.wording import percent
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.data import Turned
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, required, rule


@rule(
    "DATA007",
    up_to="warning",
    needs=("loop",),
    limits={
        "turned": Limit(0.1, "of the samples", "measured: discs with noise, two draws 44 and 46 %; one draw 0 and 90 %"),
        "source": Limit(0.2, "of the variance", "heuristic: clearly more than chance, which came to 0 at most; see the page"),
        "trained": Limit(0.1, "of the variance", "measured: chance came to 0 at most, on 230 to 400 samples; see the page"),
    },
    explains=("LOSS005",),
)
def labels_shuffled(m: Measurement, limits: Limits) -> Verdict:
    """Inputs and targets are trained on in pairs other than those they came in: one of the two was shuffled alone.

    ## What it finds
    Inputs that are put in another order without their targets, or the reverse; batches whose inputs and targets are picked by
    two different draws. Images whose maps (masks, depths) are mirrored by another draw than they are.

    ## Why it matters
    The targets say nothing about the inputs any more. The loss falls to that of the best constant, and then by learning by heart.

    ## How it is measured
    While the script runs, picks and slices of tensors are followed (`x[order]`, `index_select`, `flip`, `roll`, `sort`), through
    what is done to all rows alike, into the batches or a `TensorDataset`. Where inputs and targets come from two tensors of equally
    many rows, and most rows are paired otherwise than they stand there, the share of the targets' variance that a linear model or
    the five nearest neighbours explain on held-out samples is taken twice: of the pairs as they are trained on, and of the same
    inputs with the targets that stood beside them. Targets that are maps of the size of their images are correlated with the
    brightness of the images, sample by sample, as they are and mirrored.

    ## Limits and their sources
    At least `source` 0.2 in the pairs as they came, at most `trained` 0.1 as they are trained on; 100 samples or more. For maps
    `turned` 10 % of the samples that fit clearly better mirrored (by 0.3), and as many that fit better as they are, where one of
    both has a correlation of 0.5 or more in 80 % of 32 samples or more. Calibration on three classes and a linear target, 400
    samples: in seven scripts that tear pairs apart 0.99 to 1.0 and at most 0; nine healthy ones (plain, one order for both,
    given in two ways, shuffled by the loader, scaled behind a shuffle, mixed with others, windows of one tensor, noise from
    another one) keep their pairs. Held out: of five healthy programs (rows sorted, mixed samples, pairs to verify, denoising,
    the next value) none is reported; all six that tear pairs apart (two draws, numbers, turned, moved, sorted) are, once
    turning, moving and sorting were followed. Targets that were noise from the start come to 0 either way. By
    `benchmarks/silent.py`, on four tables: of 24 healthy programs none is reported, of 12 that tear pairs apart all are. Arrays
    of numpy, tables and files are not followed.

    ## When to ignore it
    When pairs are torn apart on purpose, as a test of what chance gives.

    ## Example
    ```python
    x = x[torch.randperm(len(x))]
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    ```

    ## Use instead
    ```python
    order = torch.randperm(len(x))
    loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=32)
    ```

    ## References
    Karpathy 2019, A Recipe for Training Neural Networks; Zhang et al. 2017, Understanding deep learning requires rethinking
    generalization (random labels).
    """
    turned = m.data.turned
    if turned is not None and min(turned.fitting, turned.mirrored) >= limits["turned"]:
        return [_turned(m, turned, limits["turned"])]
    loop = script(m)
    as_they_came = "inputs and targets are paired as they came, or nothing is known of where they come from"
    seen = required(loop.pairing, not_applicable(as_they_came))
    if seen.source < limits["source"] or seen.trained > limits["trained"]:
        return []
    message = (
        f"inputs and targets are trained on in other pairs than they came in: of {seen.samples} samples a simple model explains "
        f"{percent(max(0.0, seen.trained))} of the targets' variance (limit {percent(limits['trained'])}), and {percent(seen.source)} with "
        f"the targets that stood beside the inputs (limit {percent(limits['source'])})"
    )
    evidence = [
        Evidence("explained as trained on", seen.trained, limits["trained"], "<=", "of the variance"),
        Evidence("explained as they came", seen.source, limits["source"], ">=", "of the variance"),
    ]
    cure = Remedy("shuffle-together", "draw one order, and put inputs and targets in it together", "unsafe")
    return [found("warning", message, location=seen.site or loop.backward_site, evidence=evidence, remedies=cure)]


def _turned(m: Measurement, t: Turned, limit: float) -> Finding:
    batches = m.loop.batches if m.loop is not None else None
    message = (
        f"images and the maps that are their targets are turned by different draws: of {t.samples} maps {percent(t.mirrored)} fit their "
        f"image clearly better when mirrored {t.how}, and {percent(t.fitting)} as they are (limit {percent(limit)} of either)"
    )
    evidence = [
        Evidence("samples whose target fits better mirrored", t.mirrored, limit, ">=", "of the samples"),
        Evidence("samples whose target fits better as it is", t.fitting, limit, ">=", "of the samples"),
    ]
    cure = Remedy("shuffle-together", "draw once for each sample, and turn its image and its target by the same draw", "unsafe")
    site = (batches.reading or batches.site) if batches is not None else None
    return found("warning", message, location=site, evidence=evidence, remedies=cure)
