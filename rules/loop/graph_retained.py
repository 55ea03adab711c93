from gradcheck.analysis.wording import number
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, required, rule

KILO = 1000


@rule(
    "LOOP010",
    up_to="warning",
    needs=("loop",),
    limits={"steps": Limit(8, "steps", "measured: more than the last losses that loops keep to look at, see the page")},
)
def graph_retained(m: Measurement, limits: Limits) -> Verdict:
    """The graphs of the losses of earlier steps are kept: memory grows with every step.

    ## What it finds
    Losses that are kept as tensors after their backward pass: `total += loss`, `losses.append(loss)`. The sum, or the list,
    holds the graph of every step that went into it, until it is made again.

    ## Why it matters
    Memory grows from step to step until the epoch ends, or it runs out; freeing a long chain of graphs takes time, too. What
    the backward pass saved is freed already, so it takes long to show. With `retain_graph=True` it is not freed, and memory
    grows by all activations of a step.

    ## How it is measured
    While the script runs, a marker that dies with them is attached to the first nodes of each loss's graph. Before each
    backward pass the steps whose markers are still alive are counted. What keeps them is looked for among the variables of the
    running functions. The bytes of a step are those of the nodes of its graph, 450 each (measured, on nets of linear layers and
    a transformer).

    ## Limits and their sources
    `steps` 8: graphs of so many steps are alive, and of at least half of those since the first of these. Calibration: 12
    healthy loops (plain, accumulating, alternating with two losses, with a closure, running means of `item()` and of `detach()`,
    recurrent states cut off, policy gradients that keep the log probabilities of an episode, penalties on gradients, the
    best loss and the last three kept) never keep 8; six that add them up keep those of all steps. Held
    out: four healthy programs (a recurrent state cut off, detached losses, a loop in a loop, episodes) keep none; five (a list in a
    dict, a meter, a moving average, predictions, accumulation) keep all. By `benchmarks/silent.py`, over tables, nets and
    optimizers: of 24 healthy loops none is reported, of 12 that keep graphs all are.

    ## When to ignore it
    When a sum over few steps is kept on purpose, to be differentiated once more.

    ## Example
    ```python
    total = 0
    for x, y in loader:
        loss = loss_fn(model(x), y)
        loss.backward()
        total += loss
    ```

    ## Use instead
    ```python
    total = 0
    for x, y in loader:
        loss = loss_fn(model(x), y)
        loss.backward()
        total += loss.detach()
    ```

    ## References
    PyTorch documentation: "Frequently asked questions", my model reports out of memory; google/brax#152,
    BatsResearch/labelmodels#4, jostmey/NakedAttention#1.
    """
    loop = script(m)
    kept, limit = required(loop.retained, not_measured("the graphs of the losses were not followed")), limits["steps"]
    if kept.steps < limit:
        return []
    size = f"{number(kept.bytes / KILO)} kB" if kept.bytes < KILO**2 else f"{number(kept.bytes / KILO**2)} MB"
    what = f"{kept.name} keeps" if kept.name else "something keeps"
    message = (
        f"{what} the graph of every loss: those of {kept.steps} of {kept.window} steps were alive at once (limit {number(limit)}); memory "
        f"grows by about {size} with every step"
    )
    evidence = Evidence("steps whose graphs are alive", kept.steps, limit, ">=", "steps")
    cure = Remedy("detach-kept", "keep loss.detach(), or loss.item(), in place of the loss")
    return [found("warning", message, location=kept.site or loop.backward_site, evidence=evidence, remedies=cure)]
